"""Colours that depend on the view: real spherical harmonics up to degree 3.

Order (l, m) = (0, 0), (1, -1), (1, 0), (1, 1), (2, -2), ... with the Condon-Shortley phase, as 3D Gaussian PLY files
have them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from threestudio.ops.spherical_harmonics import real_spherical_harmonics

MAX_DEGREE = 3
DC = math.sqrt(1 / (4 * math.pi))  # the basis function of degree 0


def sh_size(degree: int) -> int:
    """How many coefficients degrees 0 to `degree` have. Raises ValueError for a degree that is not 0 to 3."""
    if not 0 <= degree <= MAX_DEGREE:
        raise ValueError(f"sh_degree: expected 0 to {MAX_DEGREE}, got {degree}")
    return (degree + 1) ** 2


def view_colors(
    means: Tensor,  # [N, 3]
    sh: Tensor,  # [N, K, 3]
    camera_positions: Tensor,  # [B, 3]
    degree: int,  # of the coefficients in use; K may hold more
) -> Tensor:
    """[B, N, 3], at least 0: 1/2 plus the harmonics in the direction from camera to mean (Kerbl et al. 2023)."""
    if degree == 0:
        return sh_to_rgb(sh[:, 0]).clamp(min=0).expand(camera_positions.shape[0], -1, -1)
    directions = torch.nn.functional.normalize(means - camera_positions[:, None], dim=-1)
    basis = real_spherical_harmonics(directions, degree + 1)  # [B, N, k]
    return (torch.einsum("bnk,nkc->bnc", basis, sh[:, : basis.shape[-1]]) + 0.5).clamp(min=0)


def rgb_to_sh(rgb: Tensor) -> Tensor:
    """Colours [..., 3] -> coefficients of degree 0."""
    return (rgb - 0.5) / DC


def sh_to_rgb(sh: Tensor) -> Tensor:
    """Coefficients of degree 0 -> colours, not clamped."""
    return sh * DC + 0.5
