"""Base classes of geometries: anything that says where matter is and which features it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.models.isosurface import (
    EmptyFieldError,
    IsosurfaceHelper,
    MarchingCubeCPUHelper,
    MarchingTetrahedraHelper,
    check_resolution,
)
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.mesh import Mesh
from threestudio.utils.base import BaseModule
from threestudio.utils.errors import UserError
from threestudio.utils.ops import chunk_batch, scale_tensor

# Grid points per field query where isosurface_chunk=0 and no gradient is kept: bounds the memory of an export.
DEFAULT_ISOSURFACE_CHUNK = 2**18


def contract_to_unisphere(x: Tensor, bbox: Tensor, unbounded: bool = False) -> Tensor:
    """Maps world points into [0, 1]^3.

    Bounded: the box becomes the unit cube. Unbounded: the box becomes [-1, 1]^3, what lies outside its unit
    ball is contracted into the ball of radius 2 (mip-NeRF 360, eq. 10), and that ball becomes the unit cube.

    Args:
        x: [..., 3]; bbox: [2, 3], lower and upper corner.
    """
    if not unbounded:
        return scale_tensor(x, bbox, (0.0, 1.0))
    x = scale_tensor(x, bbox, (-1.0, 1.0))
    radius = x.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    contracted = (2.0 - 1.0 / radius.clamp(min=1.0)) * (x / radius)
    return torch.where(radius > 1.0, contracted, x) / 4.0 + 0.5


class BaseGeometry(BaseModule):
    @dataclass
    class Config(BaseModule.Config):
        pass

    cfg: Config

    @staticmethod
    def create_from(other: BaseGeometry, cfg: Any | None = None, **kwargs: Any) -> BaseGeometry:
        """Makes a geometry of this class from one of another class, as stage hand-over does."""
        raise TypeError(f"no conversion from {other.__class__.__name__} is defined for this geometry")

    def initialize_shape(self) -> None:
        """Gives the geometry the shape that training starts from, where its config names one; called before fitting."""

    def export(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What a mesh exporter needs at points of the surface, e.g. features [N, C]."""
        return {}

    def init_from_mesh(self, mesh: Mesh, material: BaseMaterial, steps: int) -> None:
        """Takes the shape and, with the material, the colours of a mesh that load_mesh_file has read."""
        raise UserError(f"system.init_from_mesh: {type(self).__name__} cannot start from a mesh")

    def isosurface(self) -> Mesh:
        """The surface as a mesh in world units."""
        raise UserError(f"{type(self).__name__} has no surface to make a mesh of")


class BaseImplicitGeometry(BaseGeometry):
    """A field over space.

    A subclass defines forward, forward_density or forward_sdf, forward_field and forward_level.
    """

    @dataclass
    class Config(BaseGeometry.Config):
        radius: float = 1.0  # half the side of the bounding cube, world units
        isosurface: bool = True  # whether a surface can be extracted
        isosurface_method: str = "mt"  # mt: marching tetrahedra, differentiable; mc-cpu: marching cubes
        isosurface_resolution: int = 128  # grid resolution along an axis
        # field value of the surface (float), or "auto": mean of the field where it is > 1e-5
        isosurface_threshold: float | str = 0.0
        isosurface_chunk: int = 0  # grid points per field query; 0: all at once while gradients are kept, else 262144
        isosurface_coarse_to_fine: bool = True  # a first pass finds a tight box for the second
        isosurface_deformable_grid: bool = False  # whether forward_field also moves the grid (mt only)
        isosurface_remove_outliers: bool = True  # drop small components
        # least faces of a component; float: fraction of the largest
        isosurface_outlier_n_faces_threshold: int | float = 0.01
        isosurface_remove_cavities: bool = False  # drop the surfaces of hollows, which nobody sees from outside

    cfg: Config

    def configure(self) -> None:
        r = float(self.cfg.radius)
        if not r > 0:
            raise UserError(f"geometry.radius: expected > 0, got {self.cfg.radius}")
        if self.cfg.isosurface_method not in ("mt", "mc-cpu"):
            raise UserError(f"geometry.isosurface_method: expected mt or mc-cpu, got {self.cfg.isosurface_method!r}")
        if self.cfg.isosurface:
            check_resolution(self.cfg.isosurface_method, self.cfg.isosurface_resolution)
        if self.cfg.isosurface_deformable_grid and self.cfg.isosurface_method != "mt":
            raise UserError("geometry.isosurface_deformable_grid: works with isosurface_method=mt only")
        threshold = self.cfg.isosurface_threshold
        if isinstance(threshold, str) and threshold != "auto":
            raise UserError(f"geometry.isosurface_threshold: expected a number or 'auto', got {threshold!r}")
        self.register_buffer("bbox", torch.tensor([[-r] * 3, [r] * 3], dtype=torch.float32))
        self.isosurface_helper: IsosurfaceHelper | None = None
        self.unbounded = False

    def forward(self, points: Tensor, output_normal: bool = False) -> dict[str, Tensor]:
        """points [..., 3] in world units -> density or sdf [..., 1], features [..., C]; if asked, normals [..., 3]."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def forward_density(self, points: Tensor) -> Tensor:
        """points [..., 3] -> density [..., 1], for fields that have one."""
        raise TypeError(f"{type(self).__name__} has no density")

    def forward_sdf(self, points: Tensor) -> Tensor:
        """points [..., 3] -> signed distance [..., 1], negative inside, for fields that have one."""
        raise TypeError(f"{type(self).__name__} has no signed distance")

    def forward_field(self, points: Tensor) -> tuple[Tensor, Tensor | None]:
        """points [..., 3] -> the isosurface threshold's field [..., 1], and the grid deformation [..., 3] or None."""
        raise TypeError(f"{type(self).__name__} does not define forward_field")

    def forward_level(self, field: Tensor, threshold: float) -> Tensor:
        """field [..., 1] -> level [..., 1]: zero on the surface, negative inside."""
        raise TypeError(f"{type(self).__name__} does not define forward_level")

    def isosurface(self) -> Mesh:
        """The surface at ``isosurface_threshold``: closed, outward, in world units, gradients kept by mt.

        Raises EmptyFieldError, naming threshold and the field's range, where there is no surface.
        """
        if not self.cfg.isosurface:
            raise UserError(
                "geometry.isosurface: this geometry was configured not to give a surface (isosurface=false)"
            )
        self._initialize_isosurface_helper()
        if self.cfg.isosurface_coarse_to_fine:
            with torch.no_grad():
                # Without what is dropped at the end: it would widen the box, and coarsen the surface that stays.
                coarse = self._without_outliers(self._isosurface(self.bbox))
            low, high = coarse.v_pos.amin(0), coarse.v_pos.amax(0)
            margin = (high - low) * 0.1
            tight = torch.stack([torch.maximum(low - margin, self.bbox[0]), torch.minimum(high + margin, self.bbox[1])])
            mesh = self._isosurface(tight, fine_stage=True)
        else:
            mesh = self._isosurface(self.bbox)
        mesh = self._without_outliers(mesh)
        if self.cfg.isosurface_remove_cavities:
            mesh = mesh.remove_cavities()
        return mesh

    def _without_outliers(self, mesh: Mesh) -> Mesh:
        cfg = self.cfg
        return mesh.remove_outlier(cfg.isosurface_outlier_n_faces_threshold) if cfg.isosurface_remove_outliers else mesh

    def _initialize_isosurface_helper(self) -> None:
        if self.isosurface_helper is None:
            helper_class = {"mt": MarchingTetrahedraHelper, "mc-cpu": MarchingCubeCPUHelper}[self.cfg.isosurface_method]
            self.isosurface_helper = helper_class(self.cfg.isosurface_resolution).to(self.bbox.device)

    def _isosurface(self, bbox: Tensor, fine_stage: bool = False) -> Mesh:
        """bbox [2, 3]: where the grid lies."""
        helper = self.isosurface_helper
        deformation_at_stage = fine_stage or not self.cfg.isosurface_coarse_to_fine

        def query(x: Tensor) -> tuple[Tensor, Tensor | None]:
            field, deformation = self.forward_field(scale_tensor(x, helper.points_range, bbox))
            return field, (deformation if deformation_at_stage else None)

        chunk = self.cfg.isosurface_chunk or (0 if torch.is_grad_enabled() else DEFAULT_ISOSURFACE_CHUNK)
        field, deformation = chunk_batch(query, chunk, helper.grid_vertices.to(bbox.device))
        field = field.float()
        threshold = self._threshold(field)
        level = helper.close_border(self.forward_level(field, threshold))
        try:
            mesh = helper(level, deformation=deformation)
        except EmptyFieldError:
            low, high = field.min().item(), field.max().item()
            raise EmptyFieldError(
                f"isosurface: the field is empty: no surface at geometry.isosurface_threshold={threshold:.4g}, "
                f"the field's values are in [{low:.4g}, {high:.4g}]"
            ) from None
        mesh.v_pos = scale_tensor(mesh.v_pos, helper.points_range, bbox)
        mesh.add_extra("bbox", bbox)
        return mesh

    def _threshold(self, field: Tensor) -> float:
        threshold = self.cfg.isosurface_threshold
        if threshold != "auto":
            return float(threshold)
        solid = field[field > 1e-5]
        if solid.numel() == 0:
            raise EmptyFieldError(
                f"isosurface: the field is empty: no value above 1e-5 (highest {field.max().item():.4g}), so threshold "
                "'auto' is undefined"
            )
        threshold = solid.mean().item()
        threestudio.info(f"isosurface_threshold auto: {threshold:.4g}")
        return threshold


class BaseExplicitGeometry(BaseGeometry):
    """A geometry that holds its surface, e.g. a mesh."""

    @dataclass
    class Config(BaseGeometry.Config):
        radius: float = 1.0  # half the side of the bounding cube, world units

    cfg: Config

    def configure(self) -> None:
        r = float(self.cfg.radius)
        self.register_buffer("bbox", torch.tensor([[-r] * 3, [r] * 3], dtype=torch.float32))
