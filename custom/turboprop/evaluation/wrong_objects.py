"""Objects and pictures that are wrong in a known way: what every measure must catch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..world.objects import Kind
from ..world.primitives import SignedDistance


def janus(kind: Kind) -> Kind:
    """The kind with its front half (x > 0) in place of its back too, turned by 180 degrees: two faces, no back."""

    def fold(points: Tensor) -> Tensor:  # [..., 3]
        sign = torch.where(points[..., :1] < 0, -1.0, 1.0)
        return torch.cat([points[..., :2] * sign, points[..., 2:]], -1)

    def through(solid: SignedDistance) -> SignedDistance:
        return lambda points: solid(fold(points))

    return replace(kind, solids=tuple((role, through(solid)) for role, solid in kind.solids))
