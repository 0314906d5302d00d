"""Weights along rays and sums over them in plain torch, any floating type, for packed samples and dense ones."""

from __future__ import annotations

import torch
from torch import Tensor

# exp(-OPAQUE) is 0 in float32; an infinite optical depth would make NaN of the differences below.
OPAQUE = 1e3


def optical_depth(t_starts: Tensor, t_ends: Tensor, density: Tensor) -> Tensor:
    """density times length of each sample, at most OPAQUE; all of one shape."""
    return (density * (t_ends - t_starts)).clamp(max=OPAQUE)


def exclusive_sum(values: Tensor, ray_indices: Tensor) -> Tensor:
    """Sum of the values before each sample on its ray. values [S] >= 0, ray_indices [S], sorted -> [S].

    A difference of running totals, in float64: over millions of samples float32 would lose the small ones. NaN
    reaches the later samples of its own ray only.
    """
    if values.numel() == 0:
        return values
    first = torch.ones_like(ray_indices, dtype=torch.bool)
    first[1:] = ray_indices[1:] != ray_indices[:-1]
    start_of_ray = first.nonzero()[:, 0][first.cumsum(0) - 1]

    def since_start(x: Tensor) -> Tensor:
        before = x.cumsum(0).roll(1).index_fill(0, ray_indices.new_zeros(1), 0)
        return before - before[start_of_ray]

    is_nan = values.isnan()
    total = since_start(values.masked_fill(is_nan, 0.0).double()).clamp(min=0).to(values.dtype)
    return total.masked_fill(since_start(is_nan.long()) > 0, float("nan"))


def weights_of_depth_torch(depth: Tensor, ray_indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Packed optical depths [S] -> weights, transmittance before the sample, alpha, each [S]."""
    return _weights(depth, exclusive_sum(depth, ray_indices))


def _weights(depth: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Optical depths of samples and of what lies before them, of one shape -> weights, transmittance, alpha."""
    transmittance, alpha = torch.exp(-before), -torch.expm1(-depth)
    return transmittance * alpha, transmittance, alpha


def accumulate_along_rays_torch(weights: Tensor, values: Tensor | None, ray_indices: Tensor, n_rays: int) -> Tensor:
    """weights [S], values [S, C] or None (ones) -> [n_rays, C]."""
    weighted = weights[:, None] if values is None else weights[:, None] * values
    return weighted.new_zeros(n_rays, weighted.shape[1]).index_add(0, ray_indices, weighted)


def render_weight_from_density_dense(
    t_starts: Tensor, t_ends: Tensor, density: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, transmittance before the sample, and alpha of samples of a density; all tensors [N, S]."""
    depth = optical_depth(t_starts, t_ends, density)
    return _weights(depth, depth.cumsum(-1) - depth)
