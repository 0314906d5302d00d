"""Losses on images."""

import torch
from torch import Tensor


def tv_loss(image: Tensor) -> Tensor:  # [B, C, H, W] -> scalar
    """Total variation: twice the mean squared difference of neighbours, vertical plus horizontal.

    The factor is that of threestudio's loss of this name, whose weights stand in published configs. The means are over
    the pairs of neighbours of all channels and images.
    """
    vertical = torch.mean((image[..., 1:, :] - image[..., :-1, :]) ** 2)
    horizontal = torch.mean((image[..., :, 1:] - image[..., :, :-1]) ** 2)
    return 2.0 * (vertical + horizontal)
