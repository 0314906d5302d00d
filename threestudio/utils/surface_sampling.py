"""Points drawn uniformly from a surface of triangles."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from threestudio.utils.errors import UserError


class SurfaceDraw(NamedTuple):
    face: Tensor  # [N] triangles
    weights: Tensor  # [N, 3] of their corners, sum 1


def cumulative_areas(v_pos: Tensor, t_pos_idx: Tensor) -> Tensor:  # [V, 3], [F, 3] -> [F] float64
    """Summed areas of the triangles up to each, times two. Raises UserError for a surface without area."""
    corners = v_pos[t_pos_idx].double()
    cross = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0], dim=-1)
    total = cross.norm(dim=-1).cumsum(0)
    if total.numel() == 0 or not bool(total[-1] > 0):
        raise UserError("the surface to draw points from has no area")
    return total


def draw_on_surface(total: Tensor, count: int) -> SurfaceDraw:
    """total: as cumulative_areas gives it. Draws from torch's global generator."""
    # Inverse of the cumulative sum: torch.multinomial stops at 2^24 faces.
    drawn = torch.rand(count, dtype=torch.float64, device=total.device) * total[-1]
    face = torch.searchsorted(total, drawn, right=True).clamp(max=total.shape[0] - 1)
    # Uniform in a triangle (Osada et al. 2002, Shape Distributions, eq. 1).
    root, along = torch.rand(count, device=total.device).sqrt(), torch.rand(count, device=total.device)
    return SurfaceDraw(face, torch.stack([1 - root, root * (1 - along), root * along], -1))
