"""Lambertian surface with a learned albedo (DreamFusion, section 3.1 and appendix A.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

import threestudio
from threestudio.models.materials.point_light import PointLightMaterial, check_shading
from threestudio.utils.ops import get_activation


@threestudio.register("diffuse-with-point-light-material")
class DiffuseWithPointLightMaterial(PointLightMaterial):
    """Before `ambient_only_steps`, validation has albedo only too."""

    @dataclass
    class Config(PointLightMaterial.Config):
        albedo_activation: str = "sigmoid"  # from features to albedo
        ambient_only_on_test: bool = False  # albedo only outside training

    cfg: Config

    def configure(self) -> None:
        self.activation = get_activation(self.cfg.albedo_activation, "material.albedo_activation")
        super().configure()

    def forward(
        self,
        features: Tensor,
        positions: Tensor,
        shading_normal: Tensor,
        light_positions: Tensor,
        ambient_ratio: float | None = None,
        shading: str | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Colours [..., 3] in [0, 1].

        Args:
            features: [..., >= 3]; positions, shading_normal, light_positions: [..., 3].
            ambient_ratio: share of ambient light in [0, 1], in place of the configured lights.
            shading: albedo, textureless or diffuse, in place of the draw.
        """
        albedo = self.activation(features[..., :3])
        shade = self.light_at(positions, shading_normal, light_positions, ambient_ratio)
        shading = self._shading() if shading is None else shading
        check_shading(shading)
        # The unused factor stays in the graph with weight zero: data-parallel training wants every parameter used.
        if shading == "albedo":
            return albedo + shade * 0
        if shading == "textureless":
            return albedo * 0 + shade
        return albedo.clamp(0.0, 1.0) * shade

    def _shading(self) -> str:
        if self.training:
            return self.shading_of_a_step()
        return "albedo" if self.ambient_only or self.cfg.ambient_only_on_test else "diffuse"

    def export(self, features: Tensor, **kwargs: Any) -> dict[str, Any]:
        return {"albedo": self.activation(features[..., :3]).clamp(0, 1)}
