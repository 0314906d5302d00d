"""`gaussian-diffuse-with-point-light-material`: light on colours that Gaussians have already."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.models.materials.point_light import PointLightMaterial, check_shading


class GaussianDiffuseMaterial(PointLightMaterial):
    """Outside training there is always shading."""

    keeps_lights = False

    def forward(
        self,
        features: Tensor,  # [..., 3] colours in [0, 1]
        positions: Tensor,  # [..., 3]
        shading_normal: Tensor,  # [..., 3] unit
        light_positions: Tensor,  # [..., 3]
        ambient_ratio: float | None = None,  # share of ambient light, in place of the configured lights
        shading: str | None = None,  # albedo, textureless or diffuse, in place of the draw
        **kwargs: Any,
    ) -> Tensor:
        """Colours [..., 3]."""
        if shading is None:
            shading = self.shading_of_a_step() if self.training else "diffuse"
        check_shading(shading)
        if shading == "albedo":
            return features
        light = self.light_at(positions, shading_normal, light_positions, ambient_ratio)
        return light.expand_as(features) if shading == "textureless" else features * light

    def export(self, features: Tensor, **kwargs: Any) -> dict[str, Any]:
        """The geometry exports logits of its colours."""
        return {"albedo": torch.sigmoid(features[..., :3])}


threestudio.register("turboprop-gaussian-diffuse-material")(GaussianDiffuseMaterial)
# threestudio-3dgs brings its own.
if "gaussian-diffuse-with-point-light-material" not in threestudio.__modules__:
    threestudio.register("gaussian-diffuse-with-point-light-material")(GaussianDiffuseMaterial)
