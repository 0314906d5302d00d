"""One colour everywhere, fixed or learned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor

import threestudio
from threestudio.models.background.base import BaseBackground, randomly_replaced
from threestudio.utils.errors import UserError


@threestudio.register("solid-color-background")
class SolidColorBackground(BaseBackground):
    @dataclass
    class Config(BaseBackground.Config):
        n_output_dims: int = 3  # channels of the colour
        color: tuple[float, ...] = (1.0, 1.0, 1.0)  # the colour, in [0, 1]
        learned: bool = False  # whether the colour is a parameter
        random_aug: bool = False  # while training, sometimes replace the background by random colours
        random_aug_prob: float = 0.5  # how often, in [0, 1]

    cfg: Config

    def configure(self) -> None:
        if len(self.cfg.color) != self.cfg.n_output_dims:
            raise UserError(
                f"background.color: expected {self.cfg.n_output_dims} numbers (n_output_dims), got "
                f"{list(self.cfg.color)}"
            )
        color = torch.tensor([float(c) for c in self.cfg.color])
        if self.cfg.learned:
            self.env_color = nn.Parameter(color)
        else:
            self.register_buffer("env_color", color)

    def forward(self, dirs: Tensor) -> Tensor:
        """dirs [B, H, W, 3] -> colours [B, H, W, n_output_dims]."""
        color = self.env_color.to(dirs).expand(*dirs.shape[:-1], -1)
        if self.training and self.cfg.random_aug:
            color = randomly_replaced(color, self.cfg.random_aug_prob)
        return color
