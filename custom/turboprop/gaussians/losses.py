"""Regularizers of Gaussians; each a scalar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

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


def summed_opacity_loss(gaussians: Gaussians) -> Tensor:
    """threestudio-3dgs's: the sum of opacities times the lengths of the scales, which get no gradient of it."""
    return (gaussians.scales.detach().norm(dim=-1) * gaussians.opacities).sum()


def summed_scales_loss(gaussians: Gaussians) -> Tensor:
    """threestudio-3dgs's: the sum of standard deviations."""
    return gaussians.scales.sum()


def _total_variation(image: Tensor) -> Tensor:  # [B, H, W, C] -> []
    return tv_loss(image.permute(0, 3, 1, 2))


def _variation_with_normals(out: dict[str, Any]) -> Tensor:
    """threestudio-3dgs's: of depth and of normals as a picture, for renderers that give these in training; else 0.

    Depth is along the view axis, so a wall that faces the camera has none.
    """
    if "comp_depth" not in out:
        return out["depth"].sum() * 0.0
    return _total_variation(out["comp_normal"]) + _total_variation(out["comp_depth"])


def _variation_of_depth(out: dict[str, Any]) -> Tensor:
    """threestudio-3dgs's with MVDream: of depth alone, for the same renderers."""
    return _total_variation(out["comp_depth"]) if "comp_depth" in out else out["depth"].sum() * 0.0


def learned_normals_loss(out: dict[str, Any]) -> Tensor:
    """Mean squared difference of the picture of learned normals to that of the depth's, which get no gradient."""
    return F.mse_loss(out["comp_pred_normal"], out["comp_normal"].detach())


# loss: its function, of the Gaussians or of the renderer's output
GAUSSIAN_LOSSES = {"position": position_loss, "opacity": opacity_loss, "scales": scales_loss}
PICTURE_LOSSES: dict[str, Callable[[dict[str, Any]], Tensor]] = {
    "tv_loss": lambda out: _total_variation(out["comp_rgb"]),
    "depth_tv_loss": lambda out: _total_variation(out["depth"]),
    "sparsity": lambda out: sparsity_loss(out["opacity"]),
    "opaque": lambda out: opaque_loss(out["opacity"]),
}

# The same under threestudio-3dgs's name: weights of its configs mean what they mean there.
UPSTREAM_GAUSSIAN_LOSSES = {**GAUSSIAN_LOSSES, "opacity": summed_opacity_loss, "scales": summed_scales_loss}
UPSTREAM_PICTURE_LOSSES = {**PICTURE_LOSSES, "depth_tv_loss": _variation_with_normals}
UPSTREAM_MULTI_VIEW_LOSSES = {**PICTURE_LOSSES, "depth_tv_loss": _variation_of_depth}
