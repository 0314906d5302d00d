"""A rough mesh that a density field is to stay near (Sketch-Shape of Latent-NeRF, Metzer et al. 2022, section 3.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import threestudio
from threestudio.models.mesh import Mesh
from threestudio.systems.loss_weights import LossWeights
from threestudio.systems.losses import VOLUME_WEIGHTS, Weight
from threestudio.utils.errors import UserError
from threestudio.utils.mesh_reading import AXES, load_mesh_file
from threestudio.utils.value_checks import check_choice

if TYPE_CHECKING:
    from threestudio.ops.mesh_distance import MeshDistance

KEY = "system.guide_shape"
STEP = 0.2  # world units; a sample's occupancy is the opacity of so long a way through its density
FREEDOM = 0.3  # world units; so near to the guide's surface the field is freer, as a Gaussian falls


@dataclass
class GuideShapeConfig:
    # a mesh that the field is to stay near, weighed by lambda_shape; null: none
    guide_shape: str | None = None
    guide_shape_size: float = 0.7  # the largest distance of a vertex from their mean, which is the origin; world units
    guide_shape_up: str = "+y"  # the file's axis that points up, as threestudio's guides have it
    guide_shape_front: str = "+z"  # the file's axis that points to the front


def configured_guide_shape(cfg: Any) -> GuideShape | None:
    """The guide of a system's config, None where it names none; its file is not read yet.

    Raises UserError, naming the key, for a value that is impossible.
    """
    if not cfg.guide_shape:
        if cfg.loss.get("lambda_shape"):
            threestudio.warn(f"system.loss.lambda_shape: {KEY} names no mesh, so it weighs nothing")
        return None
    if "lambda_shape" not in cfg.loss:
        raise UserError(f"{KEY}: system.loss.lambda_shape weighs it; expected a number there, found none")
    if not 0 < cfg.guide_shape_size < math.inf:
        raise UserError(f"{KEY}_size: expected more than 0, got {cfg.guide_shape_size:g}")
    for name in ("up", "front"):
        check_choice(f"{KEY}_{name}", getattr(cfg, f"guide_shape_{name}"), AXES)
    return GuideShape(cfg)


class GuideShape:
    """Distances to one guide, looked up in a tree of its triangles on the device that asks.

    Its file is read when training begins: tests and exports of a run do not need it.
    """

    def __init__(self, cfg: GuideShapeConfig) -> None:
        self._cfg = cfg
        self._mesh: Mesh | None = None
        self._distances: dict[torch.device, MeshDistance] = {}

    def read(self) -> Mesh:
        """The guide in its place; the file is read once. Raises UserError where it cannot be."""
        if self._mesh is None:
            self._mesh = self._placed()
        return self._mesh

    def _placed(self) -> Mesh:
        cfg = self._cfg
        assert cfg.guide_shape
        mesh = load_mesh_file(cfg.guide_shape, cfg.guide_shape_up, cfg.guide_shape_front, colors=False, key=KEY)
        centred = mesh.v_pos - mesh.v_pos.mean(0)
        return Mesh(centred * (cfg.guide_shape_size / centred.norm(dim=-1).max()), mesh.t_pos_idx)

    def distance(self, points: Tensor) -> Tensor:
        """points [N, 3] in world units -> signed distance [N, 1], negative inside."""
        from threestudio.ops.mesh_distance import MeshDistance  # brings Warp

        device = points.device
        if device not in self._distances:
            mesh = self.read()
            self._distances[device] = MeshDistance(mesh.v_pos.to(device), mesh.t_pos_idx.to(device))
        return self._distances[device](points)


class WithGuideShape:
    """Goes before the base class of a system of density fields, whose config has the keys above."""

    guide_shape: GuideShape | None = None  # as `configure` finds it

    def own_weights(self) -> LossWeights:
        return VOLUME_WEIGHTS.with_(optional=("lambda_shape",))

    def configure(self) -> None:
        self.guide_shape = configured_guide_shape(self.cfg)
        super().configure()

    def open_teacher(self) -> None:
        if self.guide_shape is not None:
            self.guide_shape.read()  # what is wrong with its file is found before the teacher is opened
        super().open_teacher()


def guide_shape_losses(guide: GuideShape | None, out: dict[str, Any], weight: Weight) -> dict[str, Tensor]:
    """loss_shape of a render of a density field, where there is a guide and it has a weight."""
    if guide is None or not weight("shape") > 0:
        return {}
    if "density" not in out:
        raise UserError(f"{KEY}: it guides fields of density, such as implicit-volume; this geometry has none")
    return {"loss_shape": shape_loss(out["density"], guide.distance(out["points"]))}


def shape_loss(
    density: Tensor,  # [N, 1], at samples along rays, per world unit
    distance: Tensor,  # [N, 1], signed, to the guide, negative inside, world units
) -> Tensor:
    """Cross entropy between the guide's inside and the field's occupancy, summed over the samples.

    It weighs 1 - exp(-d^2 / (2 s^2)) at a distance d from the guide's surface (equation 5), so that the field may have
    details there that the guide has not.
    """
    occupancy = (1.0 - torch.exp(-STEP * density.float())).clamp(1.0e-4, 1.0 - 1.0e-4)
    weight = 1.0 - torch.exp(-(distance**2) / (2.0 * FREEDOM**2))
    inside = (distance < 0).to(occupancy)
    entropy = -(inside * occupancy.log() + (1.0 - inside) * (1.0 - occupancy).log())
    return (weight * entropy).sum()
