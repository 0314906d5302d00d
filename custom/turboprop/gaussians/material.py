"""`gaussian-diffuse-with-point-light-material`: light on colours that Gaussians have already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import threestudio
from threestudio.models.materials.base import BaseMaterial
from threestudio.utils.errors import UserError


class GaussianDiffuseMaterial(BaseMaterial):
    """Lambertian surfaces under a point light and an ambient one (DreamFusion, Poole et al. 2022, section 3.1)."""

    @dataclass
    class Config(BaseMaterial.Config):
        ambient_light_color: tuple[float, float, float] = (0.1, 0.1, 0.1)  # light from everywhere
        diffuse_light_color: tuple[float, float, float] = (0.9, 0.9, 0.9)  # light of the point
        ambient_only_steps: int = 1000  # training steps that show colours only
        diffuse_prob: float = 0.75  # after them: how often there is shading
        textureless_prob: float = 0.5  # of those: how often the colour is white
        soft_shading: bool = False  # while training, mix the two lights at random

    cfg: Config

    def configure(self) -> None:
        self.requires_normal = True
        for key in ("ambient_light_color", "diffuse_light_color"):
            if len(self.cfg[key]) != 3:
                raise UserError(f"material.{key}: expected 3 numbers, got {list(self.cfg[key])}")
            self.register_buffer(key, torch.tensor([float(c) for c in self.cfg[key]]), persistent=False)
        self.ambient_only = False

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        self.ambient_only = global_step < self.cfg.ambient_only_steps

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
        shading = self._draw_shading() if shading is None else shading
        if shading == "albedo":
            return features
        ambient, diffuse = self._lights(ambient_ratio)
        to_light = F.normalize(light_positions - positions, dim=-1)
        light = (shading_normal * to_light).sum(-1, keepdim=True).clamp(min=0) * diffuse + ambient
        if shading == "textureless":
            return light.expand_as(features)
        if shading == "diffuse":
            return features * light
        raise UserError(f"shading: expected albedo, textureless or diffuse, got {shading!r}")

    def _lights(self, ambient_ratio: float | None) -> tuple[float | Tensor, float | Tensor]:
        if ambient_ratio is not None:
            return ambient_ratio, 1 - ambient_ratio
        if self.training and self.cfg.soft_shading:
            diffuse = torch.rand(()).item()
            return 1 - diffuse, diffuse
        return self.ambient_light_color, self.diffuse_light_color

    def _draw_shading(self) -> str:
        if not self.training:
            return "diffuse"
        shaded, textureless = torch.rand(2).tolist()
        if self.ambient_only or shaded >= self.cfg.diffuse_prob:
            return "albedo"
        return "textureless" if textureless < self.cfg.textureless_prob else "diffuse"

    def export(self, features: Tensor, **kwargs: Any) -> dict[str, Any]:
        """The geometry exports logits of its colours."""
        return {"albedo": torch.sigmoid(features[..., :3])}


threestudio.register("turboprop-gaussian-diffuse-material")(GaussianDiffuseMaterial)
# threestudio-3dgs brings its own.
if "gaussian-diffuse-with-point-light-material" not in threestudio.__modules__:
    threestudio.register("gaussian-diffuse-with-point-light-material")(GaussianDiffuseMaterial)
