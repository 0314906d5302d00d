"""A density field and features on a regular grid of voxels (Score Jacobian Chaining's geometry)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.models.geometry.base import BaseGeometry, BaseImplicitGeometry, contract_to_unisphere
from threestudio.models.geometry.mesh_start import (
    SHELL,
    DensityProfile,
    fit_to_mesh,
    mesh_distance,
    surface_density,
)
from threestudio.models.geometry.normals import NORMAL_TYPES, analytic_gradient, finite_difference_gradient
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.mesh import Mesh
from threestudio.utils.errors import UserError
from threestudio.utils.ops import get_activation
from threestudio.utils.value_checks import check_choice

MOST_VOXELS = 2**31 - 1  # values of the grid that torch indexes with 32 bits


@threestudio.register("volume-grid")
class VolumeGrid(BaseImplicitGeometry):
    @dataclass
    class Config(BaseImplicitGeometry.Config):
        grid_size: tuple[int, int, int] = (100, 100, 100)  # voxels along x, y and z
        n_feature_dims: int = 3  # features that the material sees; 0: none
        density_activation: str | None = "softplus"  # from grid value plus bias to density
        density_bias: float | str = "blob"  # a number, or blob: density_blob_scale (1 - |x| / std)
        density_blob_scale: float = 5.0  # height of the blob
        density_blob_std: float = 0.5  # its size, world units
        # finite_difference (forward), finite_difference_laplacian (central), pred (from the grid), analytic; null: none
        normal_type: str | None = "finite_difference"
        finite_difference_normal_eps: float = 0.001  # distance of the differences, world units; threestudio's
        isosurface_threshold: float | str = "auto"  # density of the surface

    cfg: Config

    def configure(self) -> None:
        super().configure()
        self._check_config()
        nx, ny, nz = self.cfg.grid_size
        # grid_sample's layout: x is the last axis. One table holds density, then features.
        self.grid = nn.Parameter(torch.zeros(1, 1 + self.cfg.n_feature_dims, nz, ny, nx))
        if self.cfg.density_bias == "blob":
            self.register_buffer("density_scale", torch.tensor(0.0))
        else:
            self.density_scale = nn.Parameter(torch.tensor(0.0))
        if self.cfg.normal_type == "pred":
            self.normal_grid = nn.Parameter(torch.zeros(1, 3, nz, ny, nx))

    def _check_config(self) -> None:
        cfg = self.cfg
        size = [int(n) for n in cfg.grid_size]
        if len(size) != 3 or min(size) < 2:
            raise UserError(f"geometry.grid_size: expected three numbers >= 2, got {list(cfg.grid_size)}")
        if size[0] * size[1] * size[2] * (1 + cfg.n_feature_dims) > MOST_VOXELS:
            raise UserError(
                f"geometry.grid_size: {size} with {cfg.n_feature_dims} features holds more than {MOST_VOXELS} values"
            )
        if isinstance(cfg.density_bias, str) and cfg.density_bias != "blob":
            raise UserError(f"geometry.density_bias: expected a number or blob, got {cfg.density_bias!r}")
        check_choice("geometry.normal_type", cfg.normal_type, NORMAL_TYPES)
        if not cfg.finite_difference_normal_eps > 0:
            raise UserError(
                f"geometry.finite_difference_normal_eps: expected > 0, got {cfg.finite_difference_normal_eps}"
            )
        self.density_activation = get_activation(cfg.density_activation, "geometry.density_activation")

    # ----------------------------------------------------------------------------- field

    def forward(self, points: Tensor, output_normal: bool = False) -> dict[str, Tensor]:
        """points [..., 3] in world units -> density [..., 1], features [..., n_feature_dims] and, if asked for, unit
        normal and shading_normal [..., 3]."""
        analytic = output_normal and self.cfg.normal_type == "analytic"
        grad_enabled = torch.is_grad_enabled()
        with torch.set_grad_enabled(grad_enabled or analytic):
            if analytic and not points.requires_grad:
                points = points.detach().requires_grad_()
            values = self._interpolate(self.grid, points, twice_differentiable=analytic)
            density = self._density(points, values[..., :1])
            output = {"density": density}
            if self.cfg.n_feature_dims > 0:
                output["features"] = values[..., 1:]
            if output_normal and self.cfg.normal_type is not None:
                normal = F.normalize(self._downhill(points, density, grad_enabled), dim=-1)
                output.update(normal=normal, shading_normal=normal)
        # Where the caller keeps no gradient, the graph that analytic normals needed ends here.
        return output if grad_enabled else {name: value.detach() for name, value in output.items()}

    def _interpolate(self, grid: Tensor, points: Tensor, twice_differentiable: bool = False) -> Tensor:
        """grid [1, C, nz, ny, nx] at points [..., 3] -> [..., C]."""
        unit = contract_to_unisphere(points, self.bbox, self.unbounded).reshape(-1, 3)
        if twice_differentiable:
            values = trilinear(grid[0], unit)
        else:
            at = (unit * 2 - 1).to(grid.dtype)[None, None, None]
            values = F.grid_sample(grid, at, align_corners=False, padding_mode="border")[0, :, 0, 0].T
        return values.reshape(*points.shape[:-1], grid.shape[1])

    def _density(self, points: Tensor, raw: Tensor) -> Tensor:
        """Grid values [..., 1] at points [..., 3] -> density [..., 1]; all have one learned scale (SJC, appendix)."""
        return self.density_activation(raw * torch.exp(self.density_scale) + self._bias(points))

    def _bias(self, points: Tensor) -> float | Tensor:
        """points [..., 3] -> what is added before the activation [..., 1]; a blob is Magic3D's (its section 4.1)."""
        if self.cfg.density_bias != "blob":
            return float(self.cfg.density_bias)
        distance = (points.square().sum(-1, keepdim=True) + 1e-12).sqrt()
        return self.cfg.density_blob_scale * (1 - distance / self.cfg.density_blob_std)

    def _downhill(self, points: Tensor, density: Tensor, create_graph: bool) -> Tensor:
        """Direction [..., 3] in which the density falls, not normalized."""
        kind = self.cfg.normal_type
        if kind == "pred":
            return self._interpolate(self.normal_grid, points)
        if kind == "analytic":
            return -analytic_gradient(density, points, create_graph)
        central = kind == "finite_difference_laplacian"
        eps = self.cfg.finite_difference_normal_eps
        return -finite_difference_gradient(self.forward_density, points, density, eps, central, self.cfg.radius)

    def forward_density(self, points: Tensor) -> Tensor:
        return self._density(points, self._interpolate(self.grid[:, :1], points))

    def forward_field(self, points: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.cfg.isosurface_deformable_grid:
            threestudio.warn("volume-grid does not move the isosurface's grid: isosurface_deformable_grid is ignored")
        return self.forward_density(points), None

    def forward_level(self, field: Tensor, threshold: float) -> Tensor:
        return -(field - threshold)

    def export(self, points: Tensor, **kwargs: Any) -> dict[str, Any]:
        """points [N, 3] on the surface -> features [N, n_feature_dims]."""
        return {} if self.cfg.n_feature_dims == 0 else {"features": self._interpolate(self.grid[:, 1:], points)}

    def init_from_mesh(self, mesh: Mesh, material: BaseMaterial, steps: int) -> None:
        """Sets each voxel's density by its distance to the mesh, and fits the features."""
        cfg, (nz, ny, nx) = self.cfg, self.grid.shape[2:]
        axes = [((torch.arange(n) + 0.5) / n * 2 - 1) * cfg.radius for n in (nx, ny, nz)]
        points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).transpose(0, 2).to(self.grid)  # [nz, ny, nx, 3]
        # A surface thinner than a voxel would be lost between two of them.
        width = max(SHELL, 2.0 / min(nx, ny, nz)) * cfg.radius
        profile = DensityProfile(cfg.density_activation, surface_density(cfg.isosurface_threshold), width)
        with torch.no_grad():
            target = profile(mesh_distance(mesh, self.grid.device)(points))
            self.grid[0, 0] = ((target - self._bias(points)) * torch.exp(-self.density_scale))[..., 0]
        if cfg.n_feature_dims > 0:
            fit_to_mesh(
                self, material, mesh, cfg.radius, steps, learning_rate=0.1
            )  # of voxels, which nothing amplifies

    @staticmethod
    def create_from(other: BaseGeometry, cfg: Any | None = None, copy_net: bool = True, **kwargs: Any) -> VolumeGrid:
        """Another volume-grid resampled to this one's size; with copy_net its features too, where as many."""
        if not isinstance(other, VolumeGrid):
            raise TypeError(f"volume-grid cannot be made from {other.__class__.__name__}")
        volume = VolumeGrid(cfg, **kwargs).to(other.bbox.device)
        same = volume.cfg.n_feature_dims == other.cfg.n_feature_dims
        n = volume.grid.shape[1] if copy_net and same else 1
        with torch.no_grad():
            volume.grid[:, :n] = F.interpolate(
                other.grid[:, :n], volume.grid.shape[2:], mode="trilinear", align_corners=False
            )
            volume.density_scale.copy_(other.density_scale)
        return volume


def trilinear(grid: Tensor, unit: Tensor) -> Tensor:
    """grid [C, nz, ny, nx] at unit [N, 3] in [0, 1] -> [N, C], as grid_sample has it (align_corners=False, border).

    In plain torch, so that it can be differentiated twice, which grid_sample cannot be in 3D.
    """
    size = grid.shape[:0:-1]  # x, y, z
    last = unit.new_tensor([n - 1 for n in size])
    x = torch.minimum((unit * unit.new_tensor(list(size)) - 0.5).clamp(min=0), last)
    low = x.detach().floor().minimum(last - 1).long()
    share = x - low
    flat = grid.reshape(grid.shape[0], -1)
    total = 0.0
    for corner in range(8):
        up = [corner >> axis & 1 for axis in range(3)]
        i, j, k = (low[:, axis] + up[axis] for axis in range(3))
        weight = 1.0
        for axis in range(3):
            weight = weight * (share[:, axis] if up[axis] else 1 - share[:, axis])
        total = total + flat[:, (k * size[1] + j) * size[0] + i] * weight
    return total.T
