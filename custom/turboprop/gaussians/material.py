"""`gaussian-diffuse-with-point-light-material`: light on colours that Gaussians have already."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.models.materials.point_light import PointLightMaterial, check_shading


class GaussianDiffuseMaterial(PointLightMaterial):
    """As in threestudio-3dgs, whose renderer asks view by view, each view of a training step has draws of its own.

    Before `ambient_only_steps`, validation has albedo only too.
    """

    keeps_lights = False

    def forward(
        self,
        features: Tensor,  # [B, ..., 3] colours in [0, 1], of B views
        positions: Tensor,  # [B, ..., 3]
        shading_normal: Tensor,  # [B, ..., 3] unit
        light_positions: Tensor,  # [B, ..., 3]
        ambient_ratio: float | None = None,  # share of ambient light, in place of the configured lights
        shading: str | None = None,  # albedo, textureless or diffuse, in place of the draw
        **kwargs: Any,
    ) -> Tensor:
        """Colours [B, ..., 3]."""
        views = zip(features, positions, shading_normal, light_positions)
        return torch.stack([self._shaded(*view, ambient_ratio, shading or self._shading()) for view in views])

    def _shading(self) -> str:
        if self.training:
            return self.shading_of_a_step()
        return "albedo" if self.ambient_only else "diffuse"

    def _shaded(
        self,
        albedo: Tensor,  # [..., 3], of one view
        positions: Tensor,  # [..., 3]
        normal: Tensor,  # [..., 3]
        light_positions: Tensor,  # [..., 3]
        ambient_ratio: float | None,
        shading: str,
    ) -> Tensor:  # [..., 3]
        check_shading(shading)
        if shading == "albedo":
            return albedo
        light = self.light_at(positions, normal, light_positions, ambient_ratio)
        # Colours of Gaussians may pass 1, which no surface can.
        return light.expand_as(albedo) if shading == "textureless" else albedo.clamp(0, 1) * light

    def export(self, features: Tensor, **kwargs: Any) -> dict[str, Any]:
        """The geometry exports logits of its colours."""
        return {"albedo": torch.sigmoid(features[..., :3])}


threestudio.register("turboprop-gaussian-diffuse-material")(GaussianDiffuseMaterial)
# threestudio-3dgs brings its own.
if "gaussian-diffuse-with-point-light-material" not in threestudio.__modules__:
    threestudio.register("gaussian-diffuse-with-point-light-material")(GaussianDiffuseMaterial)
