"""A learned latitude-longitude image around the scene."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.models.background.base import BaseBackground
from threestudio.utils.ops import get_activation
from threestudio.utils.value_checks import check_at_least


@threestudio.register("textured-background")
class TexturedBackground(BaseBackground):
    @dataclass
    class Config(BaseBackground.Config):
        n_output_dims: int = 3  # channels of the colour
        height: int = 64  # texture rows, over the elevation
        width: int = 64  # texture columns, over the azimuth
        color_activation: str = "sigmoid"  # last activation

    cfg: Config

    def configure(self) -> None:
        for key in ("n_output_dims", "height", "width"):
            check_at_least(f"background.{key}", self.cfg[key], 1)
        self.activation = get_activation(self.cfg.color_activation, "background.color_activation")
        self.texture = nn.Parameter(torch.randn(1, self.cfg.n_output_dims, self.cfg.height, self.cfg.width))

    def forward(self, dirs: Tensor) -> Tensor:
        """dirs [B, H, W, 3], unit length -> colours [B, H, W, n_output_dims]."""
        d = dirs.reshape(-1, 3)
        u = torch.atan2(d[:, 1], d[:, 0]) / math.pi
        v = -2.0 * torch.asin(d[:, 2].clamp(-1, 1)) / math.pi
        grid = torch.stack([u, v], -1)[None, None]  # [1, 1, N, 2]
        color = F.grid_sample(self.texture, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        color = color[0, :, 0].T.reshape(*dirs.shape[:-1], self.cfg.n_output_dims)
        return self.activation(color)
