"""Regularizers of Gaussians; each a scalar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from threestudio.systems.losses import opaque_loss, sparsity_loss
from threestudio.utils.loss import tv_loss

from .parameters import Gaussians


def position_loss(gaussians: Gaussians) -> Tensor:
    """Mean distance of the means from the origin: keeps the scene in the middle."""
    return gaussians.means.norm(dim=-1).mean()


def opacity_loss(gaussians: Gaussians) -> Tensor:
    """Mean opacity: what nothing holds up becomes transparent and is removed."""
    return gaussians.opacities.mean()


def scales_loss(gaussians: Gaussians) -> Tensor:
    """Mean standard deviation: many small Gaussians rather than few large ones."""
    return gaussians.scales.mean()


def _total_variation(image: Tensor) -> Tensor:  # [B, H, W, C] -> []
    return tv_loss(image.permute(0, 3, 1, 2))


# loss: its function, of the Gaussians or of the renderer's output
GAUSSIAN_LOSSES = {"position": position_loss, "opacity": opacity_loss, "scales": scales_loss}
PICTURE_LOSSES: dict[str, Callable[[dict[str, Any]], Tensor]] = {
    "tv_loss": lambda out: _total_variation(out["comp_rgb"]),
    "depth_tv_loss": lambda out: _total_variation(out["depth"]),
    "sparsity": lambda out: sparsity_loss(out["opacity"]),
    "opaque": lambda out: opaque_loss(out["opacity"]),
}
