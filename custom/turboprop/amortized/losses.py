"""Regularisers of generated fields."""

from __future__ import annotations

from torch import Tensor


def sparsity(opacity: Tensor) -> Tensor:
    """Mean of sqrt(o^2 + 0.01): keeps matter out of rays that do not need it; opacity [B, H, W, 1] -> []."""
    return (opacity.square() + 0.01).sqrt().mean()


def binary_entropy(opacity: Tensor) -> Tensor:
    """Entropy of opacity against itself: each ray is opaque or empty; [B, H, W, 1] -> []."""
    o = opacity.clamp(1e-3, 1 - 1e-3)
    return -(o * o.log() + (1 - o) * (1 - o).log()).mean()


def coverage(opacity: Tensor, least: float, most: float = 1.0) -> Tensor:
    """How far pictures are from being covered by at least `least` and at most `most`; opacity [B, H, W, 1] -> [].

    The mean over pictures of max(0, least - c) / least + max(0, c - most) / (1 - most), c being the share covered.
    Where nothing is left, or nothing is free, no gradient of a teacher can bring the object back: this acts before.
    """
    covered = opacity.mean(dim=(1, 2, 3))
    missing = (least - covered).clamp_min(0).mean() / least
    if most >= 1:
        return missing
    return missing + (covered - most).clamp_min(0).mean() / (1 - most)


def eikonal(gradient: Tensor) -> Tensor:
    """Mean of (|grad s| - 1)^2 (Gropp et al. 2020, eq. 3): gradient [N, 3] -> []."""
    return (gradient.norm(dim=-1) - 1).square().mean()
