"""Photometric changes of what an image encoder sees.

Models conditioned on DINO features are reported to overfit the appearance of their training renders (arXiv 2604.01761).
So brightness, contrast, saturation and hue of the encoder's picture vary in training; the latents stay as they are.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from threestudio.utils.errors import UserError

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
# RGB to luma and two colour differences in which a turn is a change of hue (YIQ, NTSC 1953).
TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


@dataclass
class PhotometricAugmentation:
    """How far the encoder's pictures are changed; 0 leaves a property as it is."""

    probability: float = 0.8  # share of the pictures that are changed
    brightness: float = 0.2  # factor of all colours, drawn within 1 +- this
    contrast: float = 0.2  # factor of the distance to the mean grey, likewise
    saturation: float = 0.2  # factor of the distance to the pixel's grey, likewise
    hue: float = 0.05  # turn of the hue, drawn within +- this share of a full turn

    def check(self, key: str = "photometric") -> None:
        """Raises ValueError that names the key, what was expected and what came."""
        for name, highest in (("probability", 1), ("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
            if not 0.0 <= getattr(self, name) <= highest:
                raise UserError(f"{key}.{name}: expected a number within 0 to {highest}, got {getattr(self, name)}")


def changed_photometry(
    images: Tensor,  # [B, 3, H, W] in [-1, 1]
    uniform: Tensor,  # [B, 5] in [0, 1): the draws
    settings: PhotometricAugmentation,
) -> Tensor:
    """Pictures with other brightness, contrast, saturation and hue. Returns [B, 3, H, W] in [-1, 1]."""
    spread = uniform[:, 1:] * 2.0 - 1.0  # [B, 4] in [-1, 1)
    amounts = spread * spread.new_tensor([settings.brightness, settings.contrast, settings.saturation, settings.hue])
    amounts = torch.where(uniform[:, :1] < settings.probability, amounts, torch.zeros_like(amounts))
    brightness, contrast, saturation, hue = (column.view(-1, 1, 1, 1) for column in amounts.unbind(1))
    colors = (images + 1.0) / 2.0 * (1.0 + brightness)
    luma = colors.new_tensor(LUMA).view(1, 3, 1, 1)
    mean_grey = (colors * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    colors = mean_grey + (colors - mean_grey) * (1.0 + contrast)
    grey = (colors * luma).sum(1, keepdim=True)
    colors = grey + (colors - grey) * (1.0 + saturation)
    colors = torch.einsum("bij,bjhw->bihw", hue_rotation(2.0 * math.pi * hue.flatten()), colors)
    return colors.clamp(0.0, 1.0) * 2.0 - 1.0


def hue_rotation(angle: Tensor) -> Tensor:  # [B] radians
    """Matrices that turn the hue of RGB colours and leave their luma: [B, 3, 3]."""
    to_yiq = angle.new_tensor(TO_YIQ)
    turn = torch.zeros(len(angle), 3, 3, dtype=angle.dtype, device=angle.device)
    turn[:, 0, 0] = 1.0
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
    return torch.linalg.inv(to_yiq) @ turn @ to_yiq
