"""A mesh from a file, which stays as it is, with trained features over space: for texturing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

import threestudio
from threestudio.models.geometry.base import BaseExplicitGeometry
from threestudio.models.geometry.features import EncodedFeatures, FeatureConfig
from threestudio.models.geometry.mesh_start import fit_to_mesh
from threestudio.models.geometry.shape_init import ShapeInitConfig, check_shape_init, load_mesh
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.mesh import Mesh
from threestudio.utils.errors import UserError


@threestudio.register("custom-mesh")
class CustomMesh(EncodedFeatures, BaseExplicitGeometry):
    """Vertices and faces are buffers: a checkpoint holds the mesh of its training, whatever its file is by now."""

    @dataclass
    class Config(BaseExplicitGeometry.Config, FeatureConfig, ShapeInitConfig):
        shape_init: str = ""  # mesh:<file>, required; shape_init_params: largest coordinate, world units

    cfg: Config

    def configure(self) -> None:
        super().configure()
        cfg = self.cfg
        if not cfg.shape_init.startswith("mesh:"):
            raise UserError(f"geometry.shape_init: custom-mesh expects mesh:<file>, got {cfg.shape_init!r}")
        check_shape_init(cfg)
        mesh = load_mesh(cfg, cfg.radius)
        self.register_buffer("v_buffer", mesh.v_pos)  # [Nv, 3]
        self.register_buffer("t_buffer", mesh.t_pos_idx)  # [Nf, 3]
        self._mesh: Mesh | None = None
        self.make_features()

    def isosurface(self) -> Mesh:
        """The mesh, one object for all calls, so that what is derived from it is made once."""
        if self._mesh is None or self._mesh.v_pos is not self.v_buffer:
            self._mesh = Mesh(self.v_buffer, self.t_buffer)
        return self._mesh

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for name in ("v_buffer", "t_buffer"):
            if prefix + name in state_dict:
                setattr(self, name, state_dict[prefix + name].to(self.v_buffer.device, copy=True))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, points: Tensor, output_normal: bool = False) -> dict[str, Tensor]:
        """points [..., 3] in world units -> features [..., n_feature_dims]; normals are the mesh's."""
        return self.export(points)

    def init_from_mesh(self, mesh: Mesh, material: BaseMaterial, steps: int) -> None:
        """Takes the mesh in place of ``shape_init``'s and fits the features to its colours."""
        self.v_buffer, self.t_buffer = mesh.v_pos.to(self.v_buffer), mesh.t_pos_idx.to(self.t_buffer)
        if self.has_features:
            fit_to_mesh(self, material, mesh, self.cfg.radius, steps)
