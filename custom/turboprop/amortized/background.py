"""`turboprop-plain-background`: one plain colour a picture, near grey, drawn anew while training.

A field that paints its surroundings into space is found out by a background that changes;
near grey is what the small teachers were shown most.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import threestudio
from threestudio.models.background.base import BaseBackground
from threestudio.utils.errors import UserError


@threestudio.register("turboprop-plain-background")
class PlainBackground(BaseBackground):
    @dataclass
    class Config(BaseBackground.Config):
        grey_range: tuple[float, float] = (0.3, 0.8)  # brightness while training, uniform, in [0, 1]
        tint: float = 0.04  # each channel differs from the grey by at most this
        eval_color: tuple[float, float, float] = (0.55, 0.55, 0.55)  # sRGB outside training, in [0, 1]

    cfg: Config

    def configure(self) -> None:
        low, high = self.cfg.grey_range
        if not 0 <= low <= high <= 1:
            raise UserError(
                f"background.grey_range: expected two numbers in [0, 1], the lower first, got {[low, high]}"
            )
        self.register_buffer("eval_color", torch.tensor(list(self.cfg.eval_color)), persistent=False)

    def forward(self, dirs: Tensor) -> Tensor:  # [B, H, W, 3] -> [B, H, W, 3]
        if not self.training:
            return self.eval_color.to(dirs).expand_as(dirs)
        low, high = self.cfg.grey_range
        shape = (dirs.shape[0], 1, 1)
        grey = low + (high - low) * torch.rand(*shape, 1, device=dirs.device)
        tint = self.cfg.tint * (2 * torch.rand(*shape, 3, device=dirs.device) - 1)
        return (grey + tint).clamp(0, 1).to(dirs).expand_as(dirs)
