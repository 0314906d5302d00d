"""A surface held by signed distances and displacements at the vertices of a tetrahedral grid (DMTet)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.models.geometry.base import BaseExplicitGeometry, BaseGeometry, BaseImplicitGeometry
from threestudio.models.geometry.features import EncodedFeatures, FeatureConfig
from threestudio.models.geometry.implicit_sdf import ImplicitSDF
from threestudio.models.geometry.implicit_volume import ImplicitVolume
from threestudio.models.geometry.mesh_start import fit_to_mesh
from threestudio.models.geometry.shape_init import ShapeInitConfig, SignedDistance, StartsFromShape, mesh_distance
from threestudio.models.isosurface import EmptyFieldError, MarchingTetrahedraHelper
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.mesh import Mesh
from threestudio.utils.errors import UserError
from threestudio.utils.ops import scale_tensor


@threestudio.register("tetrahedra-sdf-grid")
class TetrahedraSDFGrid(EncodedFeatures, StartsFromShape, BaseExplicitGeometry):
    """DMTet (Shen et al. 2021): the zero level of per-vertex distances, by differentiable marching tetrahedra."""

    @dataclass
    class Config(BaseExplicitGeometry.Config, FeatureConfig, ShapeInitConfig):
        isosurface_resolution: int = 128  # half cells of the grid along an axis
        isosurface_deformable_grid: bool = True  # whether the grid's vertices move, each by up to one half cell
        isosurface_remove_outliers: bool = False  # drop small components
        isosurface_outlier_n_faces_threshold: int | float = (
            0.01  # least faces of a component; float: fraction of the largest
        )
        force_shape_init: bool = False  # start from shape_init even where weights were given
        geometry_only: bool = False  # no features at all
        fix_geometry: bool = False  # the surface is given and not trained: features only

    cfg: Config

    def configure(self) -> None:
        super().configure()
        cfg = self.cfg
        self.expect_shape()
        self.register_buffer("isosurface_bbox", self.bbox.clone())  # where the grid lies
        self.isosurface_helper = MarchingTetrahedraHelper(cfg.isosurface_resolution)
        n_vertices = self.isosurface_helper.grid_vertices.shape[0]
        self._register("sdf", torch.zeros(n_vertices, 1))
        if cfg.isosurface_deformable_grid:
            self._register("deformation", torch.zeros(n_vertices, 3))
        else:
            self.deformation: Tensor | None = None
        self.make_features()
        self.mesh: Mesh | None = None  # the surface, once made, of a fixed geometry

    def _register(self, name: str, value: Tensor) -> None:
        """A parameter, or, where the geometry is fixed, a buffer; of one name in checkpoints."""
        if self.cfg.fix_geometry:
            self.register_buffer(name, value)
        else:
            self.register_parameter(name, torch.nn.Parameter(value))

    @property
    def has_features(self) -> bool:
        return not self.cfg.geometry_only and self.cfg.n_feature_dims > 0

    # --------------------------------------------------------------------------- surface

    def isosurface(self) -> Mesh:
        """The surface in world units, closed and outward; it carries gradients to sdf and deformation.

        Raises EmptyFieldError, naming the distances' range, where there is no surface.
        """
        if self.mesh is not None and self.mesh.v_pos.device == self.sdf.device:
            return self.mesh
        helper = self.isosurface_helper
        try:
            mesh = helper(helper.close_border(self.sdf), deformation=self.deformation)
        except EmptyFieldError:
            raise EmptyFieldError(self._why_empty()) from None
        mesh.v_pos = scale_tensor(mesh.v_pos, helper.points_range, self.isosurface_bbox)
        mesh.add_extra("bbox", self.isosurface_bbox)
        if self.cfg.isosurface_remove_outliers:
            mesh = mesh.remove_outlier(self.cfg.isosurface_outlier_n_faces_threshold)
        if self.cfg.fix_geometry:
            self.mesh = mesh
        return mesh

    def _why_empty(self) -> str:
        low, high = self.sdf.min().item(), self.sdf.max().item()
        if low == high == 0:
            return (
                "tetrahedra-sdf-grid has no surface: give geometry.shape_init, system.geometry_convert_from or "
                "weights, for there is nothing to start from"
            )
        return (
            f"tetrahedra-sdf-grid: the surface is empty: signed distances are in [{low:.4g}, {high:.4g}], inside is < 0"
        )

    def forward(self, points: Tensor, output_normal: bool = False) -> dict[str, Tensor]:
        """points [..., 3] in world units -> features [..., n_feature_dims]; normals are the mesh's."""
        return self.export(points)

    # ----------------------------------------------------------------------------- start

    def take_shape(self, distance: SignedDistance) -> None:
        self._take_distances(distance, f"geometry.shape_init: {self.cfg.shape_init}")

    def init_from_mesh(self, mesh: Mesh, material: BaseMaterial, steps: int) -> None:
        """Takes the mesh's distances and fits the features; ``shape_init`` is left alone from then on."""
        self._take_distances(mesh_distance(mesh, self.sdf.device), "system.init_from_mesh: the mesh")
        if self.has_features:
            fit_to_mesh(self, material, mesh, self.cfg.radius, steps)

    @torch.no_grad()
    def _take_distances(self, distance: SignedDistance, source: str) -> None:
        self.isosurface_bbox.copy_(self.bbox)
        vertices = scale_tensor(self.isosurface_helper.grid_vertices, (0.0, 1.0), self.isosurface_bbox)
        self.sdf.copy_(distance(vertices))
        if self.deformation is not None:
            self.deformation.zero_()
        self.mesh = None
        try:
            self.isosurface()  # a shape that the grid cannot hold is known before any step
        except EmptyFieldError as error:
            raise EmptyFieldError(
                f"{source} leaves no surface on a grid of "
                f"geometry.isosurface_resolution={self.cfg.isosurface_resolution}: too thin or without an inside "
                f"({error})"
            ) from None
        self.note_shape()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.mesh = None
        super()._load_from_state_dict(*args, **kwargs)

    @staticmethod
    def create_from(
        other: BaseGeometry, cfg: Any | None = None, copy_net: bool = True, **kwargs: Any
    ) -> TetrahedraSDFGrid:
        """The surface of another geometry on a grid; with copy_net also its encoding and feature network.

        Another tetrahedra-sdf-grid of the same resolution is copied as it is. Of implicit-volume and implicit-sdf the
        isosurface is taken at this geometry's resolution.
        Raises EmptyFieldError where the other has no surface.
        """
        geometry = TetrahedraSDFGrid(cfg, **kwargs).to(other.bbox.device)
        if isinstance(other, TetrahedraSDFGrid):
            geometry._copy_grid(other)
        elif isinstance(other, (ImplicitVolume, ImplicitSDF)):
            geometry._take_isosurface(other)
        else:
            raise TypeError(f"tetrahedra-sdf-grid cannot be made from {other.__class__.__name__}")
        if copy_net and geometry.has_features:
            geometry._copy_features(other)
        geometry.shape_is_given = True
        return geometry

    @torch.no_grad()
    def _copy_grid(self, other: TetrahedraSDFGrid) -> None:
        ours, theirs = self.cfg.isosurface_resolution, other.cfg.isosurface_resolution
        if ours != theirs:
            raise UserError(
                f"geometry.isosurface_resolution: expected {theirs}, that of the geometry to convert from, got {ours}"
            )
        self.isosurface_bbox.copy_(other.isosurface_bbox)
        self.sdf.copy_(other.sdf)
        self._copy_deformation(other.deformation)

    @torch.no_grad()
    def _take_isosurface(self, other: BaseImplicitGeometry) -> None:
        wanted = {"isosurface_method": "mt", "isosurface_resolution": self.cfg.isosurface_resolution}
        for key, value in wanted.items():
            if other.cfg[key] != value:
                threestudio.info(f"hand-over: {key}={value} of the previous geometry instead of {other.cfg[key]}")
                other.cfg[key] = value
        other.isosurface_helper = None
        mesh = other.isosurface()
        self.isosurface_bbox.copy_(mesh.extras["bbox"])
        level = mesh.extras["grid_level"].reshape(-1, 1)
        if isinstance(other, ImplicitVolume):
            level = distance_like(level, self.isosurface_helper.all_edges)
        self.sdf.copy_(level)
        self._copy_deformation(mesh.extras["grid_deformation"])

    def _copy_deformation(self, deformation: Tensor | None) -> None:
        if deformation is None:
            return
        if self.deformation is None:
            threestudio.warn(
                "geometry.isosurface_deformable_grid=false: the previous geometry's moved grid is straightened, its "
                "surface shifts a little"
            )
            return
        self.deformation.copy_(deformation)

    def _copy_features(self, other: BaseGeometry) -> None:
        if (
            isinstance(other, TetrahedraSDFGrid)
            and not other.has_features
            or other.cfg.n_feature_dims != self.cfg.n_feature_dims
        ):
            threestudio.warn(
                "geometry_convert_inherit_texture: the previous geometry has no features of this kind: they start anew"
            )
            return
        try:
            self.encoding.load_state_dict(other.encoding.state_dict())
            self.feature_network.load_state_dict(other.feature_network.state_dict())
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(
                "system.geometry_convert_inherit_texture: the previous geometry's pos_encoding_config or "
                f"mlp_network_config differs from this one's: {reason}"
            ) from error


def distance_like(level: Tensor, edges: Tensor) -> Tensor:
    """Scales a level [N, 1] that is no distance (a density's) to [-1, 1], so that its zero set stays where it is.

    Surface vertices depend on ratios of levels along crossed edges ``edges`` [Ne, 2] alone: one scale for all keeps
    them. It is the 99th percentile of the levels at crossed edges; the few larger ones and those far away are clamped.
    """
    ends = level[:, 0][edges]
    near = ends[(ends[:, 0] < 0) != (ends[:, 1] < 0)].abs().flatten()
    if near.numel() == 0:
        return level.clamp(-1.0, 1.0)
    scale = near.kthvalue(max(1, int(0.99 * near.numel()))).values.clamp(min=torch.finfo(level.dtype).tiny)
    return (level / scale).clamp(-1.0, 1.0)
