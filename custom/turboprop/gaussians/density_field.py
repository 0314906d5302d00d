"""Gaussians as a field over space: how dense it is at points, and what colour.

    density(x) = sum_i opacity_i exp(-1/2 (x - mean_i)^T Sigma_i^-1 (x - mean_i))

Terms further than CUTOFF standard deviations out are left out (at most 1.1 % of an opacity each). Space is cut into
cubic cells, each with a list of the Gaussians whose box reaches it, and a point asks those of its cell.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from threestudio.ops.gaussian_rasterization.projection import rotation_matrices
from torch import Tensor

from .parameters import Gaussians

CUTOFF = 3.0
CELLS = 32  # along the longest side of the points' box
PAIRS_AT_ONCE = 2**21  # of a point and a Gaussian


class FieldSample(NamedTuple):
    density: Tensor  # [P]
    color: Tensor  # [P, 3]; of the nearest mean where the density is 0


class CellLists(NamedTuple):
    """For each of C cells the Gaussians whose box reaches it: members[first[c] : first[c] + length[c]]."""

    low: Tensor  # [3] corner of the first cell
    size: Tensor  # [] side of a cell
    counts: Tensor  # [3] cells along each axis
    first: Tensor  # [C]
    length: Tensor  # [C]
    members: Tensor  # [M]


def expanded_ranges(first: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Ranges first[k], ..., first[k] + length[k] - 1 one after another: the numbers, and the k of each [sum]."""
    owner = torch.repeat_interleave(torch.arange(len(length), device=length.device), length)
    start = length.cumsum(0) - length
    return torch.arange(len(owner), device=length.device) - start[owner] + first[owner], owner


def half_extents(gaussians: Gaussians) -> Tensor:
    """[N, 3]: half the sides of the boxes around CUTOFF standard deviations."""
    return CUTOFF * ((rotation_matrices(gaussians.quaternions) * gaussians.scales[:, None]) ** 2).sum(-1).sqrt()


def gaussian_bounds(gaussians: Gaussians) -> tuple[Tensor, Tensor]:
    """Corners [3], [3] of the box around all that is dense."""
    half = half_extents(gaussians)
    return (gaussians.means - half).amin(0), (gaussians.means + half).amax(0)


def cell_lists(points: Tensor, gaussians: Gaussians) -> CellLists:
    """Cells over the box of the points [P, 3]."""
    low, high = points.amin(0), points.amax(0)
    size = ((high - low).amax() / CELLS).clamp(min=1e-9)
    counts = ((high - low) / size).floor().long() + 1
    half = half_extents(gaussians)
    begin = ((gaussians.means - half - low) / size).floor().long().clamp(min=0)
    end = torch.minimum(((gaussians.means + half - low) / size).floor().long() + 1, counts)
    sides = (end - begin).clamp(min=0)  # [N, 3]
    local, owner = expanded_ranges(torch.zeros_like(sides[:, 0]), sides.prod(1))
    x, rest = local // (sides[owner, 1] * sides[owner, 2]), local % (sides[owner, 1] * sides[owner, 2])
    place = begin[owner] + torch.stack([x, rest // sides[owner, 2], rest % sides[owner, 2]], 1)
    cell = (place[:, 0] * counts[1] + place[:, 1]) * counts[2] + place[:, 2]
    length = torch.bincount(cell, minlength=int(counts.prod()))
    return CellLists(low, size, counts, length.cumsum(0) - length, length, owner[torch.argsort(cell, stable=True)])


def _table(gaussians: Gaussians, colors: Tensor) -> Tensor:
    """[N, 13]: mean, the inverse covariance's xx, yy, zz, 2 xy, 2 xz, 2 yz, opacity, colour."""
    whitening = rotation_matrices(gaussians.quaternions) / gaussians.scales.clamp(min=1e-8)[:, None]
    inverse = whitening @ whitening.transpose(1, 2)
    diagonal = inverse.diagonal(dim1=1, dim2=2)
    mixed = 2 * torch.stack([inverse[:, 0, 1], inverse[:, 0, 2], inverse[:, 1, 2]], 1)
    return torch.cat([gaussians.means, diagonal, mixed, gaussians.opacities[:, None], colors], 1)


@torch.no_grad()
def sample_field(points: Tensor, gaussians: Gaussians, colors: Tensor) -> FieldSample:
    """Density and colour at points [P, 3]; colors [N, 3] of the Gaussians."""
    sums = points.new_zeros(points.shape[0], 4)
    if len(points) == 0:
        return FieldSample(sums[:, 0], sums[:, 1:])
    lists, table = cell_lists(points, gaussians), _table(gaussians, colors)
    index = ((points - lists.low) / lists.size).floor().long()
    index = torch.minimum(index.clamp(min=0), lists.counts - 1)
    cell = (index[:, 0] * lists.counts[1] + index[:, 1]) * lists.counts[2] + index[:, 2]
    length = lists.length[cell]
    asking = torch.nonzero(length).squeeze(1)
    _, sizes = torch.unique_consecutive(length[asking].cumsum(0) // PAIRS_AT_ONCE, return_counts=True)
    for part in asking.split(sizes.tolist()):
        number, owner = expanded_ranges(lists.first[cell[part]], length[part])
        terms = _terms(points[part][owner], table[lists.members[number]])
        sums[part] = terms.new_zeros(len(part), 4).index_add_(0, owner, terms)
    density = sums[:, 0]
    color = sums[:, 1:] / density.clamp(min=1e-12)[:, None]
    empty = torch.nonzero(density == 0).squeeze(1)
    if len(empty):
        color[empty] = colors[_nearest(points[empty], gaussians.means)]
    return FieldSample(density, color)


def _terms(points: Tensor, rows: Tensor) -> Tensor:
    """One Gaussian a point: its density, and its colour times that, [Q, 4]."""
    d = points - rows[:, :3]
    distance = (rows[:, 3:6] * d * d).sum(1)
    distance += rows[:, 6] * d[:, 0] * d[:, 1] + rows[:, 7] * d[:, 0] * d[:, 2] + rows[:, 8] * d[:, 1] * d[:, 2]
    weight = torch.where(distance <= CUTOFF**2, rows[:, 9] * torch.exp(-0.5 * distance), 0.0)
    return torch.cat([weight[:, None], weight[:, None] * rows[:, 10:]], 1)


def _nearest(points: Tensor, means: Tensor) -> Tensor:
    """[P] indices of the nearest means."""
    from scipy.spatial import cKDTree

    _, index = cKDTree(means.detach().cpu().numpy()).query(points.detach().cpu().numpy())
    return torch.from_numpy(index).to(means.device)
