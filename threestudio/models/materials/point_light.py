"""Lambertian surfaces under a point light and an ambient one (DreamFusion, Poole et al. 2022, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from threestudio.models.materials.base import BaseMaterial
from threestudio.utils.errors import UserError
from threestudio.utils.ops import dot
from threestudio.utils.value_checks import check_choice

SHADINGS = ("albedo", "textureless", "diffuse")


class PointLightMaterial(BaseMaterial):
    """What such materials share: the lights, and which shading a training step has. `forward` is theirs."""

    @dataclass
    class Config(BaseMaterial.Config):
        ambient_light_color: tuple[float, float, float] = (0.1, 0.1, 0.1)  # light from everywhere
        diffuse_light_color: tuple[float, float, float] = (0.9, 0.9, 0.9)  # light of the point
        ambient_only_steps: int = 1000  # training steps before which there is albedo only
        diffuse_prob: float = 0.75  # after them: how often there is shading
        textureless_prob: float = 0.5  # of those: how often the albedo is white
        soft_shading: bool = False  # while training, mix the two lights at random (Magic3D)

    cfg: Config
    keeps_lights = True  # whether checkpoints hold the lights' colours, as upstream's do

    def configure(self) -> None:
        self.requires_normal = True
        for key in ("ambient_light_color", "diffuse_light_color"):
            color = getattr(self.cfg, key)
            if len(color) != 3:
                raise UserError(f"material.{key}: expected 3 numbers, got {list(color)}")
            self.register_buffer(key, torch.tensor([float(c) for c in color]), persistent=self.keeps_lights)
        self.ambient_only = False

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        self.ambient_only = global_step < self.cfg.ambient_only_steps

    def light_at(
        self,
        positions: Tensor,  # [..., 3]
        shading_normal: Tensor,  # [..., 3] unit length
        light_positions: Tensor,  # [..., 3]
        ambient_ratio: float | None,  # share of ambient light in [0, 1], in place of the configured lights
    ) -> Tensor:
        """What a white surface shows: [..., 3], or [..., 1] where both lights are white."""
        ambient, diffuse = self._lights(ambient_ratio)
        to_light = F.normalize(light_positions - positions, dim=-1)
        return dot(shading_normal, to_light).clamp(min=0.0) * diffuse + ambient

    def _lights(self, ambient_ratio: float | None) -> tuple[float | Tensor, float | Tensor]:
        """Ambient and diffuse light colours, [3] or numbers."""
        if ambient_ratio is not None:
            return ambient_ratio, 1.0 - ambient_ratio
        if self.training and self.cfg.soft_shading:
            diffuse = torch.rand(()).item()
            return 1.0 - diffuse, diffuse
        return self.ambient_light_color, self.diffuse_light_color

    def shading_of_a_step(self) -> str:
        """One of SHADINGS, drawn as the probabilities say."""
        shaded, textureless = torch.rand(2).tolist()
        if self.ambient_only or shaded >= self.cfg.diffuse_prob:
            return "albedo"
        return "textureless" if textureless < self.cfg.textureless_prob else "diffuse"


def check_shading(shading: str) -> None:
    """Raises UserError for what is none of SHADINGS."""
    check_choice("shading", shading, SHADINGS)
