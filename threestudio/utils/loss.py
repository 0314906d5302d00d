"""Losses on images."""

import torch
from torch import Tensor


def tv_loss(image: Tensor) -> Tensor:  # [B, C, H, W] -> scalar
    """Total variation: mean squared difference of neighbours, vertical plus horizontal."""
    vertical = torch.mean((image[..., 1:, :] - image[..., :-1, :]) ** 2)
    horizontal = torch.mean((image[..., :, 1:] - image[..., :, :-1]) ** 2)
    return vertical + horizontal
