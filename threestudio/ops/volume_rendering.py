"""Emission-absorption volume rendering (Max 1995; NeRF eq. 3) of samples along rays, in plain torch.

Samples come packed: S of them for all rays together, sorted by ray and then by distance, each with the index of its
ray. The ``_dense`` functions do the same for a fixed number of samples a ray, [N, S]; they are the tests' oracle.
On a CPU every sum is added up in one order, so that results repeat bit for bit.
"""

from __future__ import annotations

from typing import Optional, Tuple

import torch
from torch import Tensor

# exp(-OPAQUE) is 0 in float32; an infinite optical depth would make NaN of the differences below.
OPAQUE = 1e3


def optical_depth(t_starts: Tensor, t_ends: Tensor, density: Tensor) -> Tensor:
    """density times length of each sample, at most OPAQUE; all of one shape."""
    return (density * (t_ends - t_starts)).clamp(max=OPAQUE)


def ray_offsets(ray_indices: Tensor, n_rays: int) -> Tensor:
    """Index of the first sample of each ray and, last, the number of samples [n_rays + 1]."""
    return torch.searchsorted(ray_indices.contiguous(), torch.arange(n_rays + 1, device=ray_indices.device))


def exclusive_sum(values: Tensor, ray_indices: Tensor) -> Tensor:
    """Sum of the values before each sample on its ray. values [S], ray_indices [S], sorted -> [S].

    A difference of running totals, in float64: over millions of samples float32 would lose the small ones.
    """
    if values.numel() == 0:
        return values
    before = values.double().cumsum(0).roll(1).index_fill(0, ray_indices.new_zeros(1), 0.0)
    first = torch.ones_like(ray_indices, dtype=torch.bool)
    first[1:] = ray_indices[1:] != ray_indices[:-1]
    start_of_ray = first.nonzero()[:, 0]
    return (before - before[start_of_ray][first.cumsum(0) - 1]).clamp(min=0).to(values.dtype)


def render_weight_from_density(
    t_starts: Tensor, t_ends: Tensor, density: Tensor, ray_indices: Tensor
) -> Tuple[Tensor, Tensor, Tensor]:
    """Weights, transmittance before the sample, and alpha of packed samples; all tensors [S].

    alpha = 1 - exp(-density length), transmittance = exp(-sum of density length before), weight = their product.
    """
    depth = optical_depth(t_starts, t_ends, density)
    transmittance = torch.exp(-exclusive_sum(depth, ray_indices))
    alpha = -torch.expm1(-depth)
    return transmittance * alpha, transmittance, alpha


def render_weight_from_density_dense(t_starts: Tensor, t_ends: Tensor, density: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """The same for tensors [N, S]."""
    depth = optical_depth(t_starts, t_ends, density)
    transmittance = torch.exp(-(depth.cumsum(-1) - depth))
    alpha = -torch.expm1(-depth)
    return transmittance * alpha, transmittance, alpha


def render_weight_from_alpha(alpha: Tensor, ray_indices: Tensor) -> Tuple[Tensor, Tensor]:
    """Weights and transmittance of packed samples whose opacity alpha [S] in [0, 1] is known (NeuS)."""
    depth = -torch.log1p(-alpha.clamp(max=1 - 1e-7))
    transmittance = torch.exp(-exclusive_sum(depth, ray_indices))
    return transmittance * alpha, transmittance


def accumulate_along_rays(weights: Tensor, values: Optional[Tensor], ray_indices: Tensor, n_rays: int) -> Tensor:
    """Weighted sum on each ray: weights [S], values [S, C] or None (ones) -> [n_rays, C]."""
    weighted = weights[:, None] if values is None else weights[:, None] * values
    return weighted.new_zeros(n_rays, weighted.shape[1]).index_add(0, ray_indices, weighted)


def accumulate_along_rays_dense(weights: Tensor, values: Optional[Tensor]) -> Tensor:
    """The same for weights [N, S], values [N, S, C] or None -> [N, C]."""
    return weights.sum(-1, keepdim=True) if values is None else (weights[..., None] * values).sum(-2)
