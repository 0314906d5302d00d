"""Colours that depend on the view: real spherical harmonics up to degree 3.

Order (l, m) = (0, 0), (1, -1), (1, 0), (1, 1), (2, -2), ... with the Condon-Shortley phase, as 3D Gaussian PLY files
have them. Basis functions: Sloan 2013, Efficient Spherical Harmonic Evaluation, appendix A2; the constants are
sqrt((2l + 1) / (4 pi) (l - m)! / (l + m)!) times the polynomials' own factors, written out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_DEGREE = 3
DC = math.sqrt(1 / (4 * math.pi))  # the basis function of degree 0


def sh_size(degree: int) -> int:
    """How many coefficients degrees 0 to `degree` have. Raises ValueError for a degree that is not 0 to 3."""
    if not 0 <= degree <= MAX_DEGREE:
        raise ValueError(f"sh_degree: expected 0 to {MAX_DEGREE}, got {degree}")
    return (degree + 1) ** 2


def sh_basis(directions: Tensor, degree: int) -> Tensor:
    """Unit directions [..., 3] -> [..., (degree + 1)^2]."""
    count = sh_size(degree)
    x, y, z = directions.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    pi = math.pi
    basis = [
        torch.full_like(x, DC),
        -math.sqrt(3 / (4 * pi)) * y,
        math.sqrt(3 / (4 * pi)) * z,
        -math.sqrt(3 / (4 * pi)) * x,
        math.sqrt(15 / (4 * pi)) * x * y,
        -math.sqrt(15 / (4 * pi)) * y * z,
        math.sqrt(5 / (16 * pi)) * (3 * zz - 1),
        -math.sqrt(15 / (4 * pi)) * x * z,
        math.sqrt(15 / (16 * pi)) * (xx - yy),
        -math.sqrt(35 / (32 * pi)) * y * (3 * xx - yy),
        math.sqrt(105 / (4 * pi)) * x * y * z,
        -math.sqrt(21 / (32 * pi)) * y * (5 * zz - 1),
        math.sqrt(7 / (16 * pi)) * z * (5 * zz - 3),
        -math.sqrt(21 / (32 * pi)) * x * (5 * zz - 1),
        math.sqrt(105 / (16 * pi)) * z * (xx - yy),
        -math.sqrt(35 / (32 * pi)) * x * (xx - 3 * yy),
    ]
    return torch.stack(basis[:count], -1)


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
    basis = sh_basis(directions, degree)  # [B, N, k]
    return (torch.einsum("bnk,nkc->bnc", basis, sh[:, : basis.shape[-1]]) + 0.5).clamp(min=0)


def rgb_to_sh(rgb: Tensor) -> Tensor:
    """Colours [..., 3] -> coefficients of degree 0."""
    return (rgb - 0.5) / DC


def sh_to_rgb(sh: Tensor) -> Tensor:
    """Coefficients of degree 0 -> colours, not clamped."""
    return sh * DC + 0.5
