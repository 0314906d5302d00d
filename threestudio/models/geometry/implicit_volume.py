"""A density field and features over a hash grid: the geometry of NeRF-style text-to-3D."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.models.geometry.base import BaseGeometry, BaseImplicitGeometry
from threestudio.models.geometry.features import EncodedFeatures, FeatureConfig
from threestudio.models.geometry.mesh_start import SHELL, DensityProfile, fit_to_mesh, surface_density
from threestudio.models.geometry.normals import NORMAL_TYPES, analytic_gradient, finite_difference_gradient
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.mesh import Mesh
from threestudio.models.networks import get_encoding, get_mlp
from threestudio.utils.errors import UserError
from threestudio.utils.ops import get_activation
from threestudio.utils.value_checks import check_choice

DENSITY_BIASES = ("blob_magic3d", "blob_dreamfusion")


@threestudio.register("implicit-volume")
class ImplicitVolume(EncodedFeatures, BaseImplicitGeometry):
    @dataclass
    class Config(BaseImplicitGeometry.Config, FeatureConfig):
        density_activation: str | None = "softplus"  # from network output plus bias to density
        density_bias: float | str = "blob_magic3d"  # a number, or a blob: see density_bias_at
        density_blob_scale: float = 10.0  # height of the blob
        density_blob_std: float = 0.5  # its size, world units
        # finite_difference (forward), finite_difference_laplacian (central), pred (a network's), analytic; null: none
        normal_type: str | None = "finite_difference"
        finite_difference_normal_eps: float = 0.01  # distance of the differences, world units
        isosurface_threshold: float | str = 25.0  # density of the surface, or "auto"
        # min_anneal_step, max_anneal_step, start_val, end_val: the blob's size over steps
        anneal_density_blob_std_config: dict | None = None

    cfg: Config

    def configure(self) -> None:
        super().configure()
        self._check_config()
        self.density_blob_std = float(self.cfg.density_blob_std)
        self.encoding = get_encoding(self.cfg.n_input_dims, self.cfg.pos_encoding_config)
        n, mlp = self.encoding.n_output_dims, self.cfg.mlp_network_config
        self.density_network = get_mlp(n, 1, mlp)
        if self.has_features:
            self.feature_network = get_mlp(n, self.cfg.n_feature_dims, mlp)
        if self.cfg.normal_type == "pred":
            self.normal_network = get_mlp(n, 3, mlp)

    def _check_config(self) -> None:
        self.density_activation = get_activation(self.cfg.density_activation, "geometry.density_activation")
        check_choice("geometry.normal_type", self.cfg.normal_type, NORMAL_TYPES)
        bias = self.cfg.density_bias
        if isinstance(bias, str) and bias not in DENSITY_BIASES:
            raise UserError(
                f"geometry.density_bias: expected a number or one of {', '.join(DENSITY_BIASES)}, got {bias!r}"
            )
        anneal = self.cfg.anneal_density_blob_std_config
        keys = ("min_anneal_step", "max_anneal_step", "start_val", "end_val")
        if anneal is not None and set(anneal) != set(keys):
            raise UserError(
                f"geometry.anneal_density_blob_std_config: expected the keys {', '.join(keys)}, got {', '.join(anneal)}"
            )

    def density_bias_at(self, points: Tensor) -> float | Tensor:
        """points [..., 3] -> what is added to the network's output [..., 1].

        blob_dreamfusion: scale exp(-|x|^2 / (2 std^2)) (DreamFusion, appendix A.2);
        blob_magic3d: scale (1 - |x| / std) (Magic3D, section 4.1).
        """
        bias, scale, std = self.cfg.density_bias, self.cfg.density_blob_scale, self.density_blob_std
        if bias == "blob_dreamfusion":
            return scale * torch.exp(-0.5 * points.square().sum(-1, keepdim=True) / std**2)
        if bias == "blob_magic3d":
            return scale * (1 - (points.square().sum(-1, keepdim=True) + 1e-12).sqrt() / std)
        return float(bias)

    def get_activated_density(self, points: Tensor, density: Tensor) -> tuple[Tensor, Tensor]:
        """points [..., 3] in world units, network output [..., 1] -> density before and after activation."""
        raw_density = density + self.density_bias_at(points)
        return raw_density, self.density_activation(raw_density)

    def forward(self, points: Tensor, output_normal: bool = False) -> dict[str, Tensor]:
        analytic = output_normal and self.cfg.normal_type == "analytic"
        grad_enabled = torch.is_grad_enabled()
        with torch.set_grad_enabled(grad_enabled or analytic):
            if analytic and not points.requires_grad:
                points = points.detach().requires_grad_()
            encoded = self.encoded(points)
            density = self.density_network(encoded).view(*points.shape[:-1], 1)
            _, density = self.get_activated_density(points, density)
            output = {"density": density}
            if self.has_features:
                output["features"] = self.features_of(points, encoded)
            if output_normal and self.cfg.normal_type is not None:
                normal = F.normalize(self._normal(points, encoded, density, grad_enabled), dim=-1)
                output.update(normal=normal, shading_normal=normal)
        # Where the caller keeps no gradient, the graph that analytic normals needed ends here.
        return output if grad_enabled else {name: value.detach() for name, value in output.items()}

    def _normal(self, points: Tensor, encoded: Tensor, density: Tensor, create_graph: bool) -> Tensor:
        """Downhill direction of the density [..., 3], not normalized."""
        kind = self.cfg.normal_type
        if kind == "pred":
            return self.normal_network(encoded).view(*points.shape[:-1], 3)
        if kind == "analytic":
            return -analytic_gradient(density, points, create_graph)
        central = kind == "finite_difference_laplacian"
        eps = self.cfg.finite_difference_normal_eps
        return -finite_difference_gradient(self.forward_density, points, density, eps, central, self.cfg.radius)

    def forward_density(self, points: Tensor) -> Tensor:
        return self._density(points)[1]

    def forward_field(self, points: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.cfg.isosurface_deformable_grid:
            threestudio.warn("implicit-volume does not move the grid: isosurface_deformable_grid is ignored")
        return self.forward_density(points), None

    def forward_level(self, field: Tensor, threshold: float) -> Tensor:
        return -(field - threshold)

    def raw_density(self, points: Tensor) -> Tensor:
        """points [..., 3] -> density before its activation [..., 1]."""
        return self._density(points)[0]

    def _density(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """points [..., 3] -> density before and after its activation [..., 1]."""
        network = self.density_network(self.encoded(points)).view(*points.shape[:-1], 1)
        return self.get_activated_density(points, network)

    def init_from_mesh(self, mesh: Mesh, material: BaseMaterial, steps: int) -> None:
        """Dense inside of the mesh, empty outside, `isosurface_threshold` on it ("auto": 25)."""
        level = surface_density(self.cfg.isosurface_threshold)
        profile = DensityProfile(self.cfg.density_activation, level, SHELL * self.cfg.radius)
        fit_to_mesh(self, material, mesh, self.cfg.radius, steps, profile.loss(self.raw_density))

    @staticmethod
    def create_from(
        other: BaseGeometry, cfg: Any | None = None, copy_net: bool = True, **kwargs: Any
    ) -> ImplicitVolume:
        """Copies another implicit-volume's field; with copy_net its networks of features and of normals too.

        Features only where n_feature_dims are equal, normals where both geometries have such a network.
        """
        if not isinstance(other, ImplicitVolume):
            raise TypeError(f"implicit-volume cannot be made from {other.__class__.__name__}")
        volume = ImplicitVolume(cfg, **kwargs).to(other.bbox.device)
        volume.encoding.load_state_dict(other.encoding.state_dict())
        volume.density_network.load_state_dict(other.density_network.state_dict())
        if copy_net and volume.cfg.n_feature_dims == other.cfg.n_feature_dims > 0:
            volume.feature_network.load_state_dict(other.feature_network.state_dict())
        if copy_net and volume.cfg.normal_type == other.cfg.normal_type == "pred":
            volume.normal_network.load_state_dict(other.normal_network.state_dict())
        return volume

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        anneal = self.cfg.anneal_density_blob_std_config
        if anneal is None:
            return
        first, last = anneal["min_anneal_step"], anneal["max_anneal_step"]
        start, end = anneal["start_val"], anneal["end_val"]
        if global_step >= first:
            progress = min((global_step - first) / max(last - first, 1), 1.0)
            self.density_blob_std = start + (end - start) * progress
