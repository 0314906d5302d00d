"""A signed distance field and features over a hash grid: the geometry of surface-based text-to-3D."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.models.geometry.base import BaseGeometry, BaseImplicitGeometry
from threestudio.models.geometry.features import EncodedFeatures, FeatureConfig
from threestudio.models.geometry.mesh_start import distance_shape_loss, fit_to_mesh
from threestudio.models.geometry.normals import NORMAL_TYPES, analytic_gradient, finite_difference_gradient
from threestudio.models.geometry.shape_fit import fit_signed_distance
from threestudio.models.geometry.shape_init import (
    ShapeInitConfig,
    SignedDistance,
    StartsFromShape,
    parametric_distance,
)
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.mesh import Mesh
from threestudio.models.networks import ProgressiveBandHashGrid, get_encoding, get_mlp
from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import check_choice


@threestudio.register("implicit-sdf")
class ImplicitSDF(EncodedFeatures, StartsFromShape, BaseImplicitGeometry):
    @dataclass
    class Config(BaseImplicitGeometry.Config, FeatureConfig, ShapeInitConfig):
        # finite_difference (forward), finite_difference_laplacian (central), pred (a network's), analytic; null: none
        normal_type: str | None = "finite_difference"
        # distance of the differences, world units; progressive: a cell of ProgressiveBandHashGrid's finest open level
        finite_difference_normal_eps: float | str = 0.01
        force_shape_init: bool = False  # start from shape_init even where weights were given
        sdf_bias: float | str = 0.0  # added to the network's output: a number, sphere or ellipsoid
        sdf_bias_params: Any | None = None  # radius | three half axes
        isosurface_threshold: float | str = 0.0  # distance of the surface
        isosurface_remove_outliers: bool = False  # drop small components

    cfg: Config

    def configure(self) -> None:
        super().configure()
        cfg = self.cfg
        self._check_config()
        self.expect_shape()
        self._bias = (
            parametric_distance(cfg.sdf_bias, cfg.sdf_bias_params, "sdf_bias")
            if isinstance(cfg.sdf_bias, str)
            else None
        )
        self.encoding = get_encoding(cfg.n_input_dims, cfg.pos_encoding_config)
        n, mlp = self.encoding.n_output_dims, cfg.mlp_network_config
        self.sdf_network = get_mlp(n, 1, mlp)
        if self.has_features:
            self.feature_network = get_mlp(n, cfg.n_feature_dims, mlp)
        if cfg.normal_type == "pred":
            self.normal_network = get_mlp(n, 3, mlp)
        if cfg.isosurface_deformable_grid:
            self.deformation_network = get_mlp(n, 3, mlp)
        self.finite_difference_normal_eps = self._eps_now()

    def _check_config(self) -> None:
        cfg = self.cfg
        check_choice("geometry.normal_type", cfg.normal_type, NORMAL_TYPES)
        if isinstance(cfg.sdf_bias, str) and cfg.sdf_bias not in ("sphere", "ellipsoid"):
            raise UserError(f"geometry.sdf_bias: expected a number, sphere or ellipsoid, got {cfg.sdf_bias!r}")
        eps = cfg.finite_difference_normal_eps
        if eps == "progressive":
            otype = cfg.pos_encoding_config.get("otype")
            if otype != "ProgressiveBandHashGrid":
                raise UserError(
                    "geometry.finite_difference_normal_eps: progressive needs "
                    f"pos_encoding_config.otype=ProgressiveBandHashGrid, got {otype}"
                )
        elif isinstance(eps, str) or not eps > 0:
            raise UserError(f"geometry.finite_difference_normal_eps: expected a number > 0 or progressive, got {eps!r}")

    # ----------------------------------------------------------------------------- field

    def forward(self, points: Tensor, output_normal: bool = False) -> dict[str, Tensor]:
        """points [..., 3] in world units -> sdf [..., 1], features [..., n_feature_dims] and, if asked for, normal and
        shading_normal (unit) and sdf_grad (not normalized) [..., 3]."""
        analytic = output_normal and self.cfg.normal_type == "analytic"
        grad_enabled = torch.is_grad_enabled()
        with torch.set_grad_enabled(grad_enabled or analytic):
            if analytic and not points.requires_grad:
                points = points.detach().requires_grad_()
            encoded = self.encoded(points)
            sdf = self.sdf_from_encoding(points, encoded)
            output = {"sdf": sdf}
            if self.has_features:
                output["features"] = self.features_of(points, encoded)
            if output_normal and self.cfg.normal_type is not None:
                sdf_grad = self._gradient(points, encoded, sdf, grad_enabled)
                normal = F.normalize(sdf_grad, dim=-1)
                output.update(normal=normal, shading_normal=normal, sdf_grad=sdf_grad)
        # Where the caller keeps no gradient, the graph that analytic normals needed ends here.
        return output if grad_enabled else {name: value.detach() for name, value in output.items()}

    def sdf_from_encoding(self, points: Tensor, encoded: Tensor) -> Tensor:
        """[..., 1]: the network's output plus the bias."""
        bias = float(self.cfg.sdf_bias) if self._bias is None else self._bias(points)
        return self.sdf_network(encoded).view(*points.shape[:-1], 1) + bias

    def _gradient(self, points: Tensor, encoded: Tensor, sdf: Tensor, create_graph: bool) -> Tensor:
        """d sdf / d points [..., 3]."""
        kind = self.cfg.normal_type
        if kind == "pred":
            return self.normal_network(encoded).view(*points.shape[:-1], 3)
        if kind == "analytic":
            return analytic_gradient(sdf, points, create_graph)
        central = kind == "finite_difference_laplacian"
        eps = self.finite_difference_normal_eps
        return finite_difference_gradient(self.forward_sdf, points, sdf, eps, central, self.cfg.radius)

    def forward_sdf(self, points: Tensor) -> Tensor:
        return self.sdf_from_encoding(points, self.encoded(points))

    def forward_field(self, points: Tensor) -> tuple[Tensor, Tensor | None]:
        encoded = self.encoded(points)
        deformation = None
        if self.cfg.isosurface_deformable_grid:
            deformation = self.deformation_network(encoded).view(*points.shape[:-1], 3)
        return self.sdf_from_encoding(points, encoded), deformation

    def forward_level(self, field: Tensor, threshold: float) -> Tensor:
        return field - threshold

    # ----------------------------------------------------------------------------- start

    def take_shape(self, distance: SignedDistance) -> None:
        """Fits the field to distances. Draws from torch's global generator."""
        name = self.cfg.shape_init
        error = fit_signed_distance(self, distance, self.cfg.radius, label=name)
        threestudio.info(f"shape_init: the field follows {name} to {error:.2g} world units (root mean square)")

    def init_from_mesh(self, mesh: Mesh, material: BaseMaterial, steps: int) -> None:
        """Fits distances and features to the mesh; ``shape_init`` is left alone from then on."""
        fit_to_mesh(
            self, material, mesh, self.cfg.radius, steps, distance_shape_loss(self.forward_sdf, self.cfg.radius)
        )
        self.note_shape()

    # ------------------------------------------------------------------------- life cycle

    def _eps_now(self) -> float:
        if self.cfg.finite_difference_normal_eps != "progressive":
            return float(self.cfg.finite_difference_normal_eps)
        grid = self.encoding.encoding
        assert isinstance(grid, ProgressiveBandHashGrid)
        return 2.0 * self.cfg.radius / grid.grid_resolution

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        self.finite_difference_normal_eps = self._eps_now()  # the encoding has been updated before

    @staticmethod
    def create_from(other: BaseGeometry, cfg: Any | None = None, copy_net: bool = True, **kwargs: Any) -> ImplicitSDF:
        """Copies another implicit-sdf's field; with copy_net its networks of features and of normals too.

        Features only where n_feature_dims are equal, normals where both geometries have such a network.
        """
        if not isinstance(other, ImplicitSDF):
            raise TypeError(f"implicit-sdf cannot be made from {other.__class__.__name__}")
        geometry = ImplicitSDF(cfg, **kwargs).to(other.bbox.device)
        geometry.encoding.load_state_dict(other.encoding.state_dict())
        geometry.sdf_network.load_state_dict(other.sdf_network.state_dict())
        if geometry.cfg.isosurface_deformable_grid and other.cfg.isosurface_deformable_grid:
            geometry.deformation_network.load_state_dict(other.deformation_network.state_dict())
        if copy_net and geometry.cfg.n_feature_dims == other.cfg.n_feature_dims > 0:
            geometry.feature_network.load_state_dict(other.feature_network.state_dict())
        if copy_net and geometry.cfg.normal_type == other.cfg.normal_type == "pred":
            geometry.normal_network.load_state_dict(other.normal_network.state_dict())
        geometry.shape_is_given = True
        return geometry
