"""VolSDF rendering where only samples that can count are shaded.

A cheap estimate of the signed distance, a lattice of plain numbers by prompt, says without gradient which samples of a
ray have weight; the rest is never asked for features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from threestudio.models.renderers.surface_density import volsdf_density
from threestudio.ops.ray_sampling import distances_at_shares, ray_aabb_intersect, uniform_edges
from threestudio.ops.volume_rendering import weights_of_depth
from threestudio.ops.volume_rendering.reference import render_weight_from_density_dense

from .voxel_sampling import corner_weights


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


def lattice_distance(lattice: Tensor, points: Tensor, owner: Tensor) -> Tensor:
    """Signed distances [M] from one lattice a prompt.

    lattice [P, G, G, G] (z, y, x), points [M, 3] in [-1, 1], owner [M].
    """
    resolution = lattice.shape[-1]
    indices, weights = corner_weights(points, resolution)
    values = lattice.reshape(-1)[indices + (owner * resolution**3)[:, None]]
    return (values * weights).sum(-1)


class Intervals(NamedTuple):
    """All intervals of the H rays that meet the cube."""

    ray: Tensor  # [H] int64, index of the ray
    edges: Tensor  # [H, N + 1] ascending distances along the ray
    weights: Tensor  # [H, N] estimated blending weights


@torch.no_grad()
def propose_intervals(
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
    randomized: bool,
) -> Intervals:
    """What tiles each ray inside the cube, finer where the estimate finds weight."""
    corner = torch.full((3,), radius, device=origins.device, dtype=origins.dtype)
    start, end, hit = ray_aabb_intersect(origins, directions, torch.stack([-corner, corner]), near, far)
    meets = torch.nonzero(hit).squeeze(1)
    start, end, o, d, who = start[meets], end[meets], origins[meets], directions[meets], owner[meets]
    edges = uniform_edges(start, end, num_samples, stratified=randomized)

    def weights_of(edges: Tensor) -> Tensor:  # [R, N + 1] -> [R, N]
        middle = 0.5 * (edges[:, 1:] + edges[:, :-1])
        points = (o[:, None] + middle[..., None] * d[:, None]) / radius
        distance = lattice_distance(lattice, points.reshape(-1, 3), who.repeat_interleave(middle.shape[1]))
        density = volsdf_density(distance.reshape(middle.shape), inv_std)
        return render_weight_from_density_dense(edges[:, :-1], edges[:, 1:], density)[0]

    weights = weights_of(edges)
    if num_importance:
        uniform = torch.arange(num_importance, device=edges.device, dtype=edges.dtype)
        shift = torch.rand(len(edges), 1, device=edges.device) if randomized else 0.5
        uniform = ((uniform + shift) / num_importance).expand(len(edges), -1)
        edges = torch.cat([edges, distances_at_shares(edges, weights, uniform)], 1).sort(1).values
        weights = weights_of(edges)
    return Intervals(meets, edges, weights)


def weighty_samples(intervals: Intervals, min_weight: float) -> PackedSamples:
    """Samples whose estimated weight is at least `min_weight`."""
    row, column = torch.nonzero(intervals.weights >= min_weight, as_tuple=True)
    return _packed(intervals, row, column)


def random_samples(intervals: Intervals, count: int) -> PackedSamples:
    """`count` of all samples, drawn with replacement, in no order: a mean over them is on average that over all.

    At least one ray has to meet the cube.
    """
    drawn = torch.randint(intervals.weights.numel(), (count,), device=intervals.ray.device)
    width = intervals.weights.shape[1]
    return _packed(intervals, drawn // width, drawn % width)


def _packed(intervals: Intervals, row: Tensor, column: Tensor) -> PackedSamples:
    edges = intervals.edges
    return PackedSamples(intervals.ray[row], edges[row, column], edges[row, column + 1])


def dense_slots(ray: Tensor, rays: int) -> tuple[Tensor, Tensor, int]:
    """Where packed samples go in a padded table of the rays that have any.

    ray [M] ascending -> row [M] and column [M] of each sample, number of columns.
    """
    counts = torch.bincount(ray, minlength=rays)
    first = counts.cumsum(0) - counts
    column = torch.arange(len(ray), device=ray.device) - first[ray]
    row_of_ray = (counts > 0).cumsum(0) - 1
    return row_of_ray[ray], column, int(counts.max()) if len(ray) else 0


def blending_weights(optical: Tensor, ray: Tensor, rays: int) -> Tensor:
    """Packed optical depths [M] on rays [M] ascending, at least one -> weights [M].

    On a CPU by a padded table, which is the fastest there; its size is a value that a GPU would have to be waited for.
    """
    if optical.is_cuda:
        return weights_of_depth(optical, ray)[0]
    row, column, width = dense_slots(ray, rays)
    table = optical.new_zeros(int(row[-1]) + 1, width).index_put((row, column), optical)
    before = torch.exp(-(table.cumsum(1) - table))[row, column]
    return before * -torch.expm1(-optical)


def composite(samples: PackedSamples, density: Tensor, values: Tensor, rays: int) -> Tensor:
    """Blend sample values front to back: density [M], values [M, C] -> [rays, C + 1], opacity last.

    alpha = 1 - exp(-sigma delta), exact for constant density in an interval.
    """
    if len(samples.ray) == 0:
        return values.new_zeros(rays, values.shape[1] + 1)
    weights = blending_weights(density * (samples.end - samples.start), samples.ray, rays)
    weighted = weights[:, None] * torch.cat([values, torch.ones_like(values[:, :1])], 1)
    return weighted.new_zeros(rays, values.shape[1] + 1).index_add(0, samples.ray, weighted)
