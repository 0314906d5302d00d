"""A given mesh as the first state of a geometry: its field is fitted to the mesh's shape and colours together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.geometry.shape_init import centred_on_box, check_in_box, mesh_distance, warn_if_open
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.mesh import Mesh
from threestudio.utils.config import parse_structured
from threestudio.utils.errors import UserError
from threestudio.utils.mesh_reading import AXES, load_mesh_file
from threestudio.utils.ops import get_activation
from threestudio.utils.surface_sampling import cumulative_areas, draw_on_surface
from threestudio.utils.value_checks import check_at_least, check_choice

POINTS_PER_STEP = 2**13
LARGEST_POOL = 2**17  # points whose distance to the mesh is known to a fit
LEARNING_RATE, LAST_SHARE = 1e-2, 0.1  # of Adam; the rate falls to this share of itself
# Half the width of what counts as the surface, as a share of the box's half side. Colours are fitted within it, as a
# renderer of volumes sees the surface blurred; densities rise from empty to solid over it.
SHELL = 0.02

ShapeLoss = Callable[[Tensor, Tensor], Tensor]  # points [N, 3], signed distances [N, 1] -> scalar


@dataclass
class MeshStartConfig:
    size: float | None = None  # half of the mesh's longest side, world units, centred; null: as in its file
    up: str | None = None  # the file's axis that points up, e.g. +y; null: +y for glb and gltf, else +z
    front: str | None = None  # the file's axis that points to the front; null: +z for glb and gltf, else +x
    steps: int = 1000  # of the fit


KEY, OPTIONS = "system.init_from_mesh", "system.init_from_mesh_options"


def mesh_start_config(given: Any) -> MeshStartConfig:
    """The checked options. Raises UserError."""
    cfg = parse_structured(MeshStartConfig, given)
    if cfg.size is not None and not cfg.size > 0:
        raise UserError(f"{OPTIONS}.size: expected > 0 or null, got {cfg.size}")
    check_at_least(f"{OPTIONS}.steps", cfg.steps, 1)
    for name in ("up", "front"):
        if cfg[name] is not None:
            check_choice(f"{OPTIONS}.{name}", cfg[name], AXES)
    return cfg


def read_start_mesh(path: str, cfg: MeshStartConfig, radius: float) -> Mesh:
    """The mesh of a file in its place inside the box of half side radius. Raises UserError in one line."""
    mesh = load_mesh_file(path, cfg.up, cfg.front, key=KEY)
    warn_if_open(mesh, path)
    if cfg.size is not None:
        mesh.v_pos = centred_on_box(mesh.v_pos, float(cfg.size))
    check_in_box(mesh.v_pos, radius, path, KEY, f"{OPTIONS}.size")
    return mesh


class SurfacePoints(NamedTuple):
    points: Tensor  # [N, 3]
    normals: Tensor  # [N, 3] unit
    rgb: Tensor | None  # [N, 3]; None where the mesh has no colours


class SurfaceSampler:
    """Points drawn uniformly from a mesh's surface, by torch's global generator."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        corners = mesh.v_pos[mesh.t_pos_idx].double()
        cross = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0], dim=-1)
        self._total = cumulative_areas(mesh.v_pos, mesh.t_pos_idx)
        self._normals = F.normalize(cross, dim=-1).float()
        self._colored = bool(mesh.extras.get("has_colors"))

    def __call__(self, count: int) -> SurfacePoints:
        mesh = self._mesh
        face, weights = draw_on_surface(self._total, count)
        points = (weights[..., None] * mesh.v_pos[mesh.t_pos_idx[face]]).sum(1)
        rgb = mesh.extras["colors"].at(face, weights) if self._colored else None
        return SurfacePoints(points, self._normals[face], rgb)


def fit_to_mesh(
    geometry: BaseGeometry,
    material: BaseMaterial,
    mesh: Mesh,
    radius: float,
    steps: int,
    shape_loss: ShapeLoss | None = None,
    learning_rate: float = LEARNING_RATE,
) -> dict[str, float]:
    """Trains geometry and material until the material's albedo, and with `shape_loss` the shape, are the mesh's.

    Adam on points drawn from torch's global generator. Shape and colours are fitted in the same steps because
    most fields share an encoding between them.

    Args:
        mesh: as load_mesh_file reads it, on the CPU; radius: half the side of the box around the scene.
        shape_loss: gets points near the surface and in the whole box, with their signed distances to the mesh.
    Returns the last losses: `shape`, and `color` (mean squared error of the albedo).
    """
    from tqdm import tqdm

    sampler = SurfaceSampler(mesh)
    device = geometry._dummy.device
    # Signed distances cost more than a step: they are asked for once.
    around = None if shape_loss is None else _distance_pool(sampler, mesh, radius, steps, device)
    colored = bool(mesh.extras.get("has_colors")) and bool(geometry.export(points=torch.zeros(1, 3, device=device)))
    parameters = [p for part in (geometry, material) for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, eps=1e-15)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, LAST_SHARE ** (1 / steps))
    losses: dict[str, Tensor] = {}
    with torch.enable_grad(), tqdm(total=steps, desc="init_from_mesh", leave=False, disable=None) as progress:
        for _ in range(steps):
            surface = sampler(POINTS_PER_STEP)
            losses = {}
            if around is not None and shape_loss is not None:
                chosen = torch.randint(around.points.shape[0], (POINTS_PER_STEP,)).to(device)
                losses["shape"] = shape_loss(around.points[chosen], around.distance[chosen])
            if colored:
                losses["color"] = _color_loss(geometry, material, surface, radius)
            if not losses:
                break
            optimizer.zero_grad(set_to_none=True)
            sum(losses.values()).backward()
            optimizer.step()
            decay.step()
            progress.update()
    optimizer.zero_grad(set_to_none=True)
    if "color" not in losses:
        threestudio.warn("system.init_from_mesh: the file has no colours, or the geometry no features: its shape alone")
    report = {name: loss.item() for name, loss in losses.items()}
    broken = [name for name, value in report.items() if not value < float("inf")]
    if broken:
        raise UserError(f"system.init_from_mesh: the fit of the {broken[0]} diverged")
    return report


class DistancePool(NamedTuple):
    points: Tensor  # [N, 3]
    distance: Tensor  # [N, 1] to the mesh, negative inside


def _distance_pool(
    sampler: SurfaceSampler, mesh: Mesh, radius: float, steps: int, device: torch.device
) -> DistancePool:
    count = min(LARGEST_POOL, steps * POINTS_PER_STEP)
    points = _points_around(sampler(count), radius).to(device)
    return DistancePool(points, mesh_distance(mesh, device)(points))


def _points_around(surface: SurfacePoints, radius: float) -> Tensor:
    """Half within the shell, a quarter further out, a quarter anywhere in the box. [N, 3]"""
    n = surface.points.shape[0]
    spread = torch.full((n, 1), 1.5 * SHELL * radius)
    spread[n // 2 :] = 0.15 * radius
    points = surface.points + surface.normals * torch.randn(n, 1) * spread
    points[3 * n // 4 :] = (torch.rand(n - 3 * n // 4, 3) * 2 - 1) * radius
    return points.clamp(-radius, radius)


def _color_loss(geometry: BaseGeometry, material: BaseMaterial, surface: SurfacePoints, radius: float) -> Tensor:
    shifted = surface.points + surface.normals * torch.randn(surface.points.shape[0], 1) * (0.5 * SHELL * radius)
    points = shifted.clamp(-radius, radius).to(geometry._dummy.device)
    exported: dict[str, Any] = material.export(points=points, **geometry.export(points=points))
    if "albedo" not in exported:
        raise UserError(f"system.init_from_mesh: {type(material).__name__} has no albedo to take the mesh's colours")
    return F.mse_loss(exported["albedo"][:, :3], surface.rgb.to(points))


class DensityProfile:
    """How dense, before its activation, a field is at each signed distance to the mesh that it stands for.

    It falls linearly from solid to `surface_density` over `width` inside of the surface, and to empty over `width`
    outside of it.

    Args:
        activation: a name of get_activation, of a growing function; width: world units.
    """

    def __init__(self, activation: str | None, surface_density: float, width: float) -> None:
        self.width = width
        solid = max(2.0 * surface_density, 1.0 / width)  # an opaque skin: a third of the light gets this far into it
        values = (1e-4 * surface_density, surface_density, solid)
        self.empty, self.surface, self.solid = (inverse_activation(activation, value) for value in values)

    def __call__(self, distance: Tensor) -> Tensor:
        share = (distance / self.width).clamp(-1.0, 1.0)
        outside = self.surface + share * (self.empty - self.surface)
        return torch.where(share > 0, outside, self.surface - share * (self.solid - self.surface))

    def loss(self, raw_density: Callable[[Tensor], Tensor]) -> ShapeLoss:
        """The loss of a field `raw_density`, [N, 3] -> [N, 1]; far inside it may be denser, far outside emptier."""

        def loss(points: Tensor, distance: Tensor) -> Tensor:
            error = (raw_density(points) - self(distance)) / (self.solid - self.empty)
            far_and_fine = ((distance >= self.width) & (error < 0)) | ((distance <= -self.width) & (error > 0))
            return error.masked_fill(far_and_fine, 0.0).square().mean() * 10.0

        return loss


def surface_density(threshold: float | str) -> float:
    """The density that the mesh's surface gets for a geometry's isosurface_threshold; 25 for "auto"."""
    return 25.0 if isinstance(threshold, str) or threshold <= 0 else float(threshold)


def inverse_activation(activation: str | None, value: float) -> float:
    """The number that a growing activation turns into `value`, by bisection in [-50, 1000]."""
    function = get_activation(activation)
    low, high = -50.0, 1000.0
    for _ in range(80):
        middle = (low + high) / 2
        if function(torch.tensor(middle, dtype=torch.float64)).item() < value:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def distance_shape_loss(signed_distance: Callable[[Tensor], Tensor], radius: float) -> ShapeLoss:
    """The loss of a signed distance field: its error in shells, squared near the surface and absolute far from it."""
    width = SHELL * radius

    def loss(points: Tensor, distance: Tensor) -> Tensor:
        return 0.1 * F.smooth_l1_loss(signed_distance(points) / width, distance / width)

    return loss
