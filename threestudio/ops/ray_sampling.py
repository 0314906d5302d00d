"""Where along a ray to look: box intersection, cells, importance resampling. Marching is in ray_marching.py."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from threestudio.utils.devices import sent


class RaySamples(NamedTuple):
    """Packed samples: sorted by ray, then by distance."""

    ray_indices: Tensor  # [S] int64
    t_starts: Tensor  # [S] distance along the ray, in units of its direction
    t_ends: Tensor  # [S]


def ray_aabb_intersect(
    rays_o: Tensor, rays_d: Tensor, bbox: Tensor, near: float = 0.0, far: float = 1e10
) -> tuple[Tensor, Tensor, Tensor]:
    """Where rays enter and leave a box, cut to [near, far] (slab method, Kay and Kajiya 1986).

    Args:
        rays_o, rays_d: [N, 3]; bbox: [2, 3], lower and upper corner.
    Returns:
        t_min [N], t_max [N] with t_max = t_min where a ray misses, and whether it hits [N]. A ray with NaN in it, or
        with a direction of zero, misses.
    """
    # A direction component of zero becomes a tiny one: the slab's two distances are then huge, not NaN.
    tiny = torch.where(rays_d < 0, -1e-12, 1e-12)
    inverse = 1.0 / torch.where(rays_d.abs() < 1e-12, tiny, rays_d)
    t0, t1 = (bbox[0] - rays_o) * inverse, (bbox[1] - rays_o) * inverse
    t_min = torch.minimum(t0, t1).amax(-1).clamp(min=near)
    t_max = torch.maximum(t0, t1).amin(-1).clamp(max=far)
    hit = (t_max > t_min) & (rays_d != 0).any(-1)
    return t_min, torch.where(hit, t_max, t_min), hit


def cell_of(points: Tensor, bbox: Tensor, resolution: int) -> Tensor:
    """Index of the grid cell [...] that holds each point [..., 3]; outside points count to the nearest cell."""
    unit = (points - bbox[0]) / (bbox[1] - bbox[0])
    # Clamped before the conversion, which has no meaning for NaN (cell 0 here) and for what no integer holds.
    x, y, z = torch.nan_to_num(unit * resolution, nan=0.0).clamp(0, resolution - 1).long().unbind(-1)
    return (x * resolution + y) * resolution + z


def uniform_edges(near: Tensor, far: Tensor, n_samples: int, stratified: bool, lindisp: bool = False) -> Tensor:
    """Edges [N, n_samples + 1] of equal intervals from near [N] to far [N]; lindisp: equal in 1 / distance.

    stratified: inner edges move at random by up to half an interval, one offset for each ray.
    """
    u = torch.linspace(0, 1, n_samples + 1, device=near.device, dtype=near.dtype).expand(near.shape[0], -1)
    if stratified:
        shift = (sent(torch.rand(near.shape[0], 1), near) - 0.5) / n_samples
        u = torch.cat([u[:, :1], u[:, 1:-1] + shift, u[:, -1:]], -1)
    near, far = near[:, None], far[:, None]
    if lindisp:
        return 1.0 / ((1 - u) / near.clamp(min=1e-6) + u / far.clamp(min=1e-6))
    return near + (far - near) * u


def importance_resample(edges: Tensor, weights: Tensor, n_samples: int, stratified: bool) -> Tensor:
    """Edges of new intervals that hold equal shares of the weight (inverse transform sampling, NeRF section 5.2).

    Args:
        edges: [N, M + 1]; weights: [N, M] >= 0; n_samples: new intervals a ray.
    Returns:
        [N, n_samples + 1], rising, from the first edge to the last; no gradient.
    """
    zero = torch.zeros_like(edges[:, 0])
    return distances_at_shares(edges, weights, uniform_edges(zero, zero + 1, n_samples, stratified))


@torch.no_grad()
def distances_at_shares(edges: Tensor, weights: Tensor, shares: Tensor) -> Tensor:
    """Where along each ray these shares of its weight lie nearer: inverse of the piecewise linear cdf.

    Args:
        edges: [N, M + 1]; weights: of the intervals [N, M] >= 0; shares: [N, K] in [0, 1].
    Returns:
        Distances [N, K], rising where the shares rise; no gradient.
    """
    # A small floor keeps every interval reachable, so that a wrong proposal can be corrected.
    weights = weights + 1e-5
    cdf = torch.cat([torch.zeros_like(weights[:, :1]), weights.cumsum(-1)], -1)
    cdf = cdf / cdf[:, -1:]
    above = torch.searchsorted(cdf, shares.contiguous(), right=True).clamp(1, weights.shape[1])
    low, high = cdf.gather(1, above - 1), cdf.gather(1, above)
    t_low, t_high = edges.gather(1, above - 1), edges.gather(1, above)
    fraction = ((shares - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return t_low + fraction * (t_high - t_low)
