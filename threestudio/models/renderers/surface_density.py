"""Density and opacity of space from the signed distance to a surface: VolSDF and NeuS."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def volsdf_density(sdf: Tensor, inv_std: float | Tensor) -> Tensor:
    """Density by length [...] at signed distances [...]: a Psi_b(-sdf), Psi_b the cdf of Laplace's distribution.

    inv_std: a = 1 / b, in 1 / world units (VolSDF, Yariv et al. 2021, eq. 2-3).
    """
    return inv_std * (0.5 + 0.5 * sdf.sign() * torch.expm1(-sdf.abs() * inv_std))


def volsdf_outline(inv_std: float, curvature_radius: float) -> float:
    """How far outside a surface a VolSDF picture has its outline, world units: there a passing ray is half opaque.

    Past a body of curvature radius R, at distance d, the distance along the ray is about d + s^2 / (2 R). The density
    outside is a / 2 exp(-a d) (VolSDF, eq. 2-3), so its integral is sqrt(2 pi R a) / 2 exp(-a d). The answer is where
    that is ln 2; 0 where it is less at the surface itself.
    """
    at_surface = 0.5 * math.sqrt(2 * math.pi * curvature_radius * inv_std)
    return max(0.0, math.log(at_surface / math.log(2))) / inv_std


def neus_alpha(sdf: Tensor, cosine: Tensor, lengths: Tensor, inv_std: Tensor) -> Tensor:
    """Opacity of intervals by the logistic distribution of the distance at their two ends (NeuS, eq. 13).

    Args:
        sdf: signed distance in the middle [S, 1]; lengths: of the intervals [S, 1], world units.
        cosine: d sdf / d length along the ray [S, 1], at most 0 where the ray enters the surface.
        inv_std: [] or [1], the logistic density's inverse standard deviation s, 1 / world units.
    Returns:
        alpha [S, 1] in [0, 1]: (cdf(s start) - cdf(s end)) / cdf(s start), the distance linear in between.
    """
    start, end = sdf - cosine * lengths * 0.5, sdf + cosine * lengths * 0.5
    # cdf(b) / cdf(a) through logarithms: deep inside both cdfs vanish, and their quotient is still right.
    return -torch.expm1((F.logsigmoid(end * inv_std) - F.logsigmoid(start * inv_std)).clamp(max=0.0))


def annealed_cosine(cosine: Tensor, anneal: float) -> Tensor:
    """The cosine [...] between ray and normal, as the opacity takes it: never positive.

    anneal 1: rays that leave the surface count for nothing, -relu(-cos). anneal 0: -(1 - cos) / 2, which gives them
    a gradient while the surface has yet to form (the NeuS authors' schedule for the start of training).
    """
    return -(F.relu(0.5 - 0.5 * cosine) * (1.0 - anneal) + F.relu(-cosine) * anneal)
