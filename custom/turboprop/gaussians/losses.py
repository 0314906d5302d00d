"""Regularizers of Gaussians; each a scalar."""

from __future__ import annotations

from typing import Any, Dict

from threestudio.utils.loss import tv_loss
from torch import Tensor

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


def image_tv_loss(out: Dict[str, Any]) -> Tensor:
    return tv_loss(out["comp_rgb"].permute(0, 3, 1, 2))


def depth_tv_loss(out: Dict[str, Any]) -> Tensor:
    return tv_loss(out["depth"].permute(0, 3, 1, 2))


# loss: its function, of the Gaussians or of the renderer's output
GAUSSIAN_LOSSES = {"position": position_loss, "opacity": opacity_loss, "scales": scales_loss}
PICTURE_LOSSES = {"tv_loss": image_tv_loss, "depth_tv_loss": depth_tv_loss}
