"""Lambertian surface under a point light and an ambient one (DreamFusion, section 3.1 and appendix A.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.models.materials.base import BaseMaterial
from threestudio.utils.errors import UserError
from threestudio.utils.ops import dot, get_activation

SHADINGS = ("albedo", "textureless", "diffuse")


@threestudio.register("diffuse-with-point-light-material")
class DiffuseWithPointLightMaterial(BaseMaterial):
    @dataclass
    class Config(BaseMaterial.Config):
        ambient_light_color: tuple[float, float, float] = (0.1, 0.1, 0.1)  # light from everywhere
        diffuse_light_color: tuple[float, float, float] = (0.9, 0.9, 0.9)  # light of the point
        ambient_only_steps: int = 1000  # training steps before which there is albedo only, in validation too
        diffuse_prob: float = 0.75  # after them: how often there is shading
        textureless_prob: float = 0.5  # of those: how often the albedo is white
        albedo_activation: str = "sigmoid"  # from features to albedo
        soft_shading: bool = False  # while training, mix the two lights at random (Magic3D)
        ambient_only_on_test: bool = False  # albedo only outside training

    cfg: Config

    def configure(self) -> None:
        self.requires_normal = True
        for key in ("ambient_light_color", "diffuse_light_color"):
            color = getattr(self.cfg, key)
            if len(color) != 3:
                raise UserError(f"material.{key}: expected 3 numbers, got {list(color)}")
            self.register_buffer(key, torch.tensor([float(c) for c in color]))
        self.ambient_only = False

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
        albedo = get_activation(self.cfg.albedo_activation)(features[..., :3])
        ambient, diffuse = self._lights(ambient_ratio)
        to_light = F.normalize(light_positions - positions, dim=-1)
        shade = dot(shading_normal, to_light).clamp(min=0.0) * diffuse + ambient
        shading = self._draw_shading() if shading is None else shading
        # The unused factor stays in the graph with weight zero: data-parallel training wants every parameter used.
        if shading == "albedo":
            return albedo + shade * 0
        if shading == "textureless":
            return albedo * 0 + shade
        if shading == "diffuse":
            return albedo.clamp(0.0, 1.0) * shade
        raise UserError(f"shading: expected one of {', '.join(SHADINGS)}, got {shading!r}")

    def _lights(self, ambient_ratio: float | None) -> tuple[Any, Any]:
        """Ambient and diffuse light colours, [3] or numbers."""
        if ambient_ratio is not None:
            return ambient_ratio, 1.0 - ambient_ratio
        if self.training and self.cfg.soft_shading:
            diffuse = torch.rand(()).item()
            return 1.0 - diffuse, diffuse
        return self.ambient_light_color, self.diffuse_light_color

    def _draw_shading(self) -> str:
        if not self.training:
            return "albedo" if self.ambient_only or self.cfg.ambient_only_on_test else "diffuse"
        shaded, textureless = (
            torch.rand(2) < torch.tensor([self.cfg.diffuse_prob, self.cfg.textureless_prob])
        ).tolist()
        if self.ambient_only or not shaded:
            return "albedo"
        return "textureless" if textureless else "diffuse"

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        self.ambient_only = global_step < self.cfg.ambient_only_steps

    def export(self, features: Tensor, **kwargs: Any) -> dict[str, Any]:
        return {"albedo": get_activation(self.cfg.albedo_activation)(features[..., :3]).clamp(0, 1)}
