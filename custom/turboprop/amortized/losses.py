"""The regulariser of generated fields that keeps objects in sight, and the sum of weighted losses."""

from __future__ import annotations

import torch
from threestudio.utils.errors import UserError
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


def weighted_sum(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Sum of losses times weights of the same names. Raises ValueError for a loss without a weight."""
    missing = sorted(set(losses) - set(weights))
    if missing:
        raise UserError(f"system.loss.lambda_{missing[0]}: a loss named {missing[0]} needs this weight")
    terms = [weights[name] * value for name, value in losses.items() if weights[name] != 0]
    return torch.stack(terms).sum()
