"""The regulariser of generated fields that keeps objects in sight."""

from __future__ import annotations

from torch import Tensor


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
