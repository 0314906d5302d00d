"""Gaussians as a field over space: how dense it is at points, and what colour.

    density(x) = sum_i opacity_i exp(-1/2 (x - mean_i)^T Sigma_i^-1 (x - mean_i))

Terms further than CUTOFF standard deviations out are left out (at most 1.1 % of an opacity each). Points are sorted into
cubic cells, and each cell asks only the Gaussians whose box reaches it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .parameters import Gaussians
from .rasterizer.projection import rotation_matrices

CUTOFF = 3.0
PAIRS_AT_ONCE = 2**22  # points times Gaussians in memory


class FieldSample(NamedTuple):
    density: Tensor  # [P]
    color: Tensor  # [P, 3]; of the nearest mean where the density is 0


class _Terms(NamedTuple):
    means: Tensor  # [N, 3]
    whitening: Tensor  # [N, 3, 3]; its product with x - mean is in standard deviations
    opacities: Tensor  # [N]
    colors: Tensor  # [N, 3]
    low: Tensor  # [N, 3] corner of the box around CUTOFF standard deviations
    high: Tensor  # [N, 3]


def _terms(gaussians: Gaussians, colors: Tensor) -> _Terms:
    rotation = rotation_matrices(gaussians.quaternions)
    half = CUTOFF * ((rotation * gaussians.scales[:, None]) ** 2).sum(-1).sqrt()
    whitening = rotation.transpose(1, 2) / gaussians.scales.clamp(min=1e-8)[..., None]
    return _Terms(gaussians.means, whitening, gaussians.opacities, colors, gaussians.means - half, gaussians.means + half)


def gaussian_bounds(gaussians: Gaussians) -> tuple[Tensor, Tensor]:
    """Corners [3], [3] of the box around all that is dense."""
    terms = _terms(gaussians, gaussians.means)
    return terms.low.amin(0), terms.high.amax(0)


@torch.no_grad()
def sample_field(points: Tensor, gaussians: Gaussians, colors: Tensor, cells: int = 16) -> FieldSample:
    """Density and colour at points [P, 3]; colors [N, 3] of the Gaussians; `cells` along each side of the points' box."""
    terms = _terms(gaussians, colors)
    density, color = points.new_zeros(points.shape[0]), points.new_zeros(points.shape[0], 3)
    low = points.amin(0)
    size = ((points.amax(0) - low) / cells).clamp(min=1e-9)
    index = ((points - low) / size).long().clamp(0, cells - 1)
    key = (index[:, 0] * cells + index[:, 1]) * cells + index[:, 2]
    order = torch.argsort(key, stable=True)
    keys, counts = torch.unique_consecutive(key[order], return_counts=True)
    for members in order.split(counts.tolist()):
        block = points[members]
        reach = (terms.low <= block.amax(0)) & (terms.high >= block.amin(0))
        near = torch.nonzero(reach.all(1)).squeeze(1)
        if len(near):
            density[members], color[members] = _sums(block, terms, near)
    empty = torch.nonzero(density == 0).squeeze(1)
    color = color / density.clamp(min=1e-12)[:, None]
    if len(empty):
        color[empty] = colors[_nearest(points[empty], gaussians.means)]
    return FieldSample(density, color)


def _sums(points: Tensor, terms: _Terms, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Density [P] and colours times density [P, 3] of the chosen Gaussians."""
    means, whitening = terms.means[chosen], terms.whitening[chosen]
    density, color = [], []
    for part in points.split(max(1, PAIRS_AT_ONCE // len(chosen))):
        distance = torch.einsum("nij,pnj->pni", whitening, part[:, None] - means).square().sum(-1)
        weights = torch.where(distance <= CUTOFF**2, terms.opacities[chosen] * torch.exp(-0.5 * distance), 0.0)
        density.append(weights.sum(1))
        color.append(weights @ terms.colors[chosen])
    return torch.cat(density), torch.cat(color)


def _nearest(points: Tensor, means: Tensor) -> Tensor:
    """[P] indices of the nearest means."""
    from scipy.spatial import cKDTree

    _, index = cKDTree(means.detach().cpu().numpy()).query(points.detach().cpu().numpy())
    return torch.from_numpy(index).to(means.device)
