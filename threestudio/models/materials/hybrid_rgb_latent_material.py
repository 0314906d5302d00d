"""Colours in the first three channels, anything in the others: a field of colours and latents in one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.models.materials.base import BaseMaterial
from threestudio.utils.errors import UserError
from threestudio.utils.ops import get_activation


@threestudio.register("hybrid-rgb-latent-material")
class HybridRGBLatentMaterial(BaseMaterial):
    @dataclass
    class Config(BaseMaterial.Config):
        n_output_dims: int = 3  # channels in all: geometry.n_feature_dims
        color_activation: str = "sigmoid"  # of the first three channels, see utils.ops.get_activation
        requires_normal: bool = True  # ask the geometry for normals, as if this material shaded

    cfg: Config

    def configure(self) -> None:
        self.activation = get_activation(self.cfg.color_activation, "material.color_activation")
        self.requires_normal = self.cfg.requires_normal

    def forward(self, features: Tensor, **kwargs: Any) -> Tensor:
        """features [..., n_output_dims] -> the first three as colours, the others as they are."""
        if features.shape[-1] != self.cfg.n_output_dims:
            raise UserError(
                f"hybrid-rgb-latent-material: expected {self.cfg.n_output_dims} feature channels (n_output_dims), got "
                f"{features.shape[-1]} (geometry.n_feature_dims)"
            )
        return torch.cat([self.activation(features[..., :3]), features[..., 3:]], dim=-1)

    def export(self, features: Tensor, **kwargs: Any) -> dict[str, Any]:
        return {"albedo": self(features)[..., :3].clamp(0, 1)}
