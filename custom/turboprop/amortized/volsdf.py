"""VolSDF rendering where only samples that can count are shaded.

Density (Yariv et al. 2021, eq. 2-3): sigma = a Laplace-CDF(-s / b) with a = 1 / b. A cheap
estimate of the signed distance, a lattice of plain numbers by prompt, says without
gradient which samples of a ray have weight; the rest is never asked for features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .voxel_sampling import corner_weights


def volsdf_density(signed_distance: Tensor, inv_std: float) -> Tensor:
    """Density by length of a Laplace-distributed surface: [...] -> [...]; `inv_std` = a = 1 / b, in 1 / world units."""
    s = signed_distance
    return inv_std * (0.5 - 0.5 * s.sign() * -torch.expm1(-s.abs() * inv_std))


def box_interval(origins: Tensor, directions: Tensor, radius: float, near: float, far: float) -> tuple[Tensor, Tensor]:
    """Where rays are inside the cube [-radius, radius]^3, clipped to [near, far]: [R, 3] x 2 -> start, end [R].

    A ray that misses has end <= start.
    """
    safe = torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
    first, second = (-radius - origins) / safe, (radius - origins) / safe
    start = torch.minimum(first, second).amax(-1).clamp_min(near)
    end = torch.maximum(first, second).amin(-1).clamp_max(far)
    return start, end


@dataclass
class PackedSamples:
    """The samples worth shading, ray after ray, front to back."""

    ray: Tensor  # [M] int64, index of the ray
    start: Tensor  # [M] distance along the ray where the sample's interval begins
    end: Tensor  # [M]

    @property
    def middle(self) -> Tensor:  # [M]
        return 0.5 * (self.start + self.end)

    def points(self, origins: Tensor, directions: Tensor) -> Tensor:
        """The samples' middles on rays [R, 3]: [M, 3]."""
        return origins[self.ray] + self.middle[:, None] * directions[self.ray]


def interval_edges(start: Tensor, end: Tensor, count: int, jitter: Tensor | None) -> Tensor:
    """Edges of `count` intervals that tile [start, end]: [R] x 2 -> [R, count + 1].

    `jitter` [R] in [0, 1) shifts the whole comb by less than one interval, clipped to the ends.
    """
    steps = torch.arange(count + 1, device=start.device, dtype=start.dtype)
    offset = torch.zeros_like(start) if jitter is None else jitter - 0.5
    share = ((steps + offset[:, None]) / count).clamp(0, 1)
    share[:, 0], share[:, -1] = 0, 1
    return start[:, None] + (end - start)[:, None] * share


def transmittance(optical_depth: Tensor) -> Tensor:
    """Light left before each sample, from optical depths along a ray: [R, N] -> [R, N]."""
    return torch.exp(-(optical_depth.cumsum(-1) - optical_depth))


def importance_edges(edges: Tensor, weights: Tensor, count: int, uniform: Tensor) -> Tensor:
    """`count` further edges where the weights are: edges [R, N + 1], weights [R, N], uniform [R, count] sorted in [0, 1) -> [R, count].

    Inverse of the piecewise linear distribution function (NeRF, Mildenhall et al. 2020, section 5.2).
    """
    weights = weights + 1e-5
    cdf = torch.cat([torch.zeros_like(weights[:, :1]), weights.cumsum(-1)], -1)
    cdf = cdf / cdf[:, -1:]
    index = torch.searchsorted(cdf, uniform.contiguous(), right=True).clamp(1, edges.shape[1] - 1)
    low, high = cdf.gather(1, index - 1), cdf.gather(1, index)
    left, right = edges.gather(1, index - 1), edges.gather(1, index)
    return left + (right - left) * ((uniform - low) / (high - low)).clamp(0, 1)


def lattice_distance(lattice: Tensor, points: Tensor, owner: Tensor) -> Tensor:
    """Signed distances from one lattice a prompt: lattice [P, G, G, G] (z, y, x), points [M, 3] in [-1, 1], owner [M] -> [M]."""
    resolution = lattice.shape[-1]
    indices, weights = corner_weights(points, resolution)
    values = lattice.reshape(-1)[indices + (owner * resolution**3)[:, None]]
    return (values * weights).sum(-1)


@torch.no_grad()
def propose_samples(
    lattice: Tensor,  # [P, G, G, G] signed distances, world units
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3] unit
    owner: Tensor,  # [R] the prompt of each ray
    radius: float,  # half the bounding cube, world units
    inv_std: float,
    num_samples: int,
    num_importance: int,
    near: float,
    far: float,
    min_weight: float,
    randomized: bool,
) -> PackedSamples:
    """Samples of all rays whose estimated weight is at least `min_weight`."""
    start, end = box_interval(origins, directions, radius, near, far)
    meets = torch.nonzero(end > start).squeeze(1)
    start, end, o, d, who = start[meets], end[meets], origins[meets], directions[meets], owner[meets]
    jitter = torch.rand_like(start) if randomized else None
    edges = interval_edges(start, end, num_samples, jitter)

    def weights_of(edges: Tensor) -> Tensor:  # [R, N + 1] -> [R, N]
        middle = 0.5 * (edges[:, 1:] + edges[:, :-1])
        points = (o[:, None] + middle[..., None] * d[:, None]) / radius
        distance = lattice_distance(lattice, points.reshape(-1, 3), who.repeat_interleave(middle.shape[1]))
        optical = volsdf_density(distance.reshape(middle.shape), inv_std) * edges.diff(dim=1)
        return transmittance(optical) * -torch.expm1(-optical)

    weights = weights_of(edges)
    if num_importance:
        uniform = torch.arange(num_importance, device=edges.device, dtype=edges.dtype)
        shift = torch.rand(len(edges), 1, device=edges.device) if randomized else 0.5
        uniform = ((uniform + shift) / num_importance).expand(len(edges), -1)
        edges = torch.cat([edges, importance_edges(edges, weights, num_importance, uniform)], 1).sort(1).values
        weights = weights_of(edges)
    ray, interval = torch.nonzero(weights >= min_weight, as_tuple=True)
    return PackedSamples(meets[ray], edges[ray, interval], edges[ray, interval + 1])


def dense_slots(ray: Tensor, rays: int) -> tuple[Tensor, Tensor, int]:
    """Where packed samples go in a padded table of the rays that have any.

    ray [M] ascending -> row [M] and column [M] of each sample, number of columns.
    """
    counts = torch.bincount(ray, minlength=rays)
    first = counts.cumsum(0) - counts
    column = torch.arange(len(ray), device=ray.device) - first[ray]
    row_of_ray = (counts > 0).cumsum(0) - 1
    return row_of_ray[ray], column, int(counts.max()) if len(ray) else 0


def composite(samples: PackedSamples, density: Tensor, values: Tensor, rays: int) -> Tensor:
    """Blend sample values front to back: density [M], values [M, C] -> [rays, C + 1], opacity last.

    alpha = 1 - exp(-sigma delta), exact for constant density in an interval.
    """
    if len(samples.ray) == 0:
        return values.new_zeros(rays, values.shape[1] + 1)
    row, column, width = dense_slots(samples.ray, rays)
    optical = density * (samples.end - samples.start)
    table = optical.new_zeros(int(row[-1]) + 1, width).index_put((row, column), optical)
    before = torch.exp(-(table.cumsum(1) - table))[row, column]
    weights = before * -torch.expm1(-optical)
    weighted = weights[:, None] * torch.cat([values, torch.ones_like(values[:, :1])], 1)
    return weighted.new_zeros(rays, values.shape[1] + 1).index_add(0, samples.ray, weighted)
