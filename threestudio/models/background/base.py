"""Base class of backgrounds: the colour seen along a direction that meets nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from threestudio.utils.base import BaseModule
from threestudio.utils.devices import sent


class BaseBackground(BaseModule):
    @dataclass
    class Config(BaseModule.Config):
        pass

    cfg: Config

    def forward(self, dirs: Tensor) -> Tensor:
        """dirs [B, H, W, 3], unit length -> colours [B, H, W, C]."""
        raise TypeError(f"{type(self).__name__} does not define forward")


def randomly_replaced(color: Tensor, probability: float, shared: bool = False) -> Tensor:
    """With ``probability``, all colours of the batch give way to one random colour for each image.

    With ``shared`` it is one for all images. color: [B, H, W, C]. The replaced colours stay in the graph with weight
    zero, so that data-parallel training finds every parameter used.
    """
    if torch.rand(()).item() >= probability:
        return color
    shape = (1 if shared else color.shape[0],) + (1,) * (color.ndim - 2) + (color.shape[-1],)
    random_color = sent(torch.rand(shape), color)
    return color * 0 + random_color
