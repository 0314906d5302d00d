"""Regularizers of Gaussians; each a scalar."""

from __future__ import annotations

from typing import Any, Dict

from threestudio.utils.loss import tv_loss
from threestudio.utils.ops import binary_cross_entropy
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


def sparsity_loss(out: Dict[str, Any]) -> Tensor:
    """Mean of sqrt(o^2 + 0.01) over pixels: clears haze (DreamFusion, Poole et al. 2022, appendix A.2)."""
    return (out["opacity"] ** 2 + 0.01).sqrt().mean()


def opaque_loss(out: Dict[str, Any]) -> Tensor:
    """Binary entropy of pixels' opacity: opaque or empty (Latent-NeRF, Metzer et al. 2022, section 4)."""
    opacity = out["opacity"].clamp(1e-3, 1 - 1e-3)
    return binary_cross_entropy(opacity, opacity)


def depth_tv_loss(out: Dict[str, Any]) -> Tensor:
    return tv_loss(out["depth"].permute(0, 3, 1, 2))


# loss: its function, of the Gaussians or of the renderer's output
GAUSSIAN_LOSSES = {"position": position_loss, "opacity": opacity_loss, "scales": scales_loss}
PICTURE_LOSSES = {
    "tv_loss": image_tv_loss,
    "depth_tv_loss": depth_tv_loss,
    "sparsity": sparsity_loss,
    "opaque": opaque_loss,
}
