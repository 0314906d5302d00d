"""Real spherical harmonics as polynomials in a unit direction."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def real_spherical_harmonics(directions: Tensor, degree: int) -> Tensor:
    """Orthonormal real spherical harmonics of bands 0 .. degree - 1, with the Condon-Shortley phase.

    Order and signs are those of tiny-cuda-nn's SphericalHarmonics encoding: index l^2 + l + m,
    m < 0 goes with sin(|m| phi). Directions are taken as they are, so off the unit sphere the values are
    those of the polynomials in which x^2 + y^2 was replaced by 1 - z^2.

    Args:
        directions: [..., 3]; degree: number of bands, at least 1.
    Returns:
        [..., degree^2].
    """
    x, y, z = directions.unbind(-1)
    one = torch.ones_like(z)
    # cos_m + i sin_m = (x + i y)^m; legendre[l] = P_l^m(z) / sin(theta)^m with the phase (-1)^m.
    cos_m, sin_m, diagonal = one, torch.zeros_like(z), one
    out = [one] * degree**2
    for m in range(degree):
        legendre = {m: diagonal}
        if m + 1 < degree:
            legendre[m + 1] = (2 * m + 1) * z * diagonal
        for l in range(m + 2, degree):
            legendre[l] = ((2 * l - 1) * z * legendre[l - 1] - (l + m - 1) * legendre[l - 2]) / (l - m)
        for l in range(m, degree):
            k = math.sqrt((2 * l + 1) / (4 * math.pi) * math.factorial(l - m) / math.factorial(l + m))
            if m == 0:
                out[l * l + l] = k * legendre[l]
            else:
                out[l * l + l + m] = math.sqrt(2) * k * legendre[l] * cos_m
                out[l * l + l - m] = math.sqrt(2) * k * legendre[l] * sin_m
        cos_m, sin_m = x * cos_m - y * sin_m, x * sin_m + y * cos_m
        diagonal = -(2 * m + 1) * diagonal
    return torch.stack(out, -1)
