"""A library of signed distance fields, one a prompt, decoded from feature grids."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .voxel_sampling import flatten_grids, sample_grids

LATTICE_ROWS = {"cpu": 1 << 13, "cuda": 1 << 20}  # voxels whose signed distances are computed at once


@dataclass
class SpaceCache:
    """What a generator made of P prompts, ready to be asked at points."""

    table: Tensor  # [P * R^3, F] features, a row a voxel
    resolution: int  # R

    @property
    def prompts(self) -> int:
        return self.table.shape[0] // self.resolution**3

    def select(self, index: int) -> SpaceCache:
        """The cache of one prompt."""
        size = self.resolution**3
        return SpaceCache(self.table[index * size : (index + 1) * size], self.resolution)


def make_cache(features: Tensor) -> SpaceCache:
    """Features [P, F, R, R, R] as a cache."""
    return SpaceCache(flatten_grids(features), features.shape[-1])


class FieldHeads(nn.Module):
    """Small bias-free networks from features to signed distance and colour logits.

    Their last layers start at zero: the first shape is the bias sphere, plain grey, for
    every prompt.
    """

    def __init__(self, feature_dim: int, hidden: int, color_dim: int, sphere_radius: float):
        super().__init__()
        self.sdf = _bias_free_mlp(feature_dim, hidden, 1)
        self.color = _bias_free_mlp(feature_dim, hidden, color_dim)
        self.sphere_radius = sphere_radius

    def signed_distance(self, points: Tensor, features: Tensor) -> Tensor:
        """points [M, 3] world units, features [M, F] -> [M] world units."""
        return points.norm(dim=-1) - self.sphere_radius + self.sdf(features).squeeze(-1)


def _bias_free_mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    last = nn.Linear(hidden, outputs, bias=False)
    nn.init.zeros_(last.weight)
    return nn.Sequential(nn.Linear(inputs, hidden, bias=False), nn.ReLU(), last)


class Field:
    """Heads and a cache together: a function of points for each of the cache's prompts."""

    def __init__(self, heads: FieldHeads, cache: SpaceCache, radius: float):
        self.heads, self.cache, self.radius = heads, cache, radius

    def features(self, points: Tensor, owner: Tensor) -> Tensor:  # [M, 3], [M] -> [M, F]
        return sample_grids(self.cache.table, points / self.radius, owner, self.cache.resolution)

    def features_of(self, queries: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        """The features of several sets of points: ([M, 3], [M]) each -> [M, F] each.

        One look-up answers for all: the gradient of each look-up is a table as large as the cache.
        """
        points, owners = (torch.cat(parts) for parts in zip(*queries))
        return self.features(points, owners).split([len(owner) for _, owner in queries])

    def signed_distance(self, points: Tensor, owner: Tensor) -> Tensor:  # [M, 3], [M] -> [M]
        return self.heads.signed_distance(points, self.features(points, owner))

    def gradient(self, points: Tensor, owner: Tensor, epsilon: float, center: Tensor | None = None) -> Tensor:
        """Forward differences of the signed distance, step `epsilon` world units: [M, 3], [M] -> [M, 3].

        `center` [M] is the signed distance at the points, where it is known.
        """
        moved, owners = points_ahead(points, epsilon), owner.repeat_interleave(3)
        if center is not None:
            return forward_differences(center, self.signed_distance(moved, owners), epsilon)
        here, ahead = self.features_of([(points, owner), (moved, owners)])
        center = self.heads.signed_distance(points, here)
        return forward_differences(center, self.heads.signed_distance(moved, ahead), epsilon)

    @torch.no_grad()
    def lattice(self, resolution: int) -> Tensor:
        """Signed distances at the centres of a G^3 lattice of the cube: -> [P, G, G, G] (z, y, x)."""
        prompts, table = self.cache.prompts, self.cache.table
        line = (torch.arange(resolution, device=table.device) + 0.5) / resolution * 2 - 1
        z, y, x = torch.meshgrid(line, line, line, indexing="ij")
        points = (torch.stack([x, y, z], -1) * self.radius).reshape(-1, 3).to(table.dtype)
        values = table.new_empty(prompts, len(points))
        # In pieces: the hidden layer of all voxels at once would be larger than the grid itself. A GPU's are of several
        # prompts where they fit: its time is that of asking for the pieces.
        rows = LATTICE_ROWS.get(table.device.type, LATTICE_ROWS["cpu"])
        together = max(1, rows // len(points)) if table.is_cuda else 1
        for prompt, start in itertools.product(range(0, prompts, together), range(0, len(points), rows)):
            owners = range(prompt, min(prompt + together, prompts))
            piece = points[start : start + rows].repeat(len(owners), 1)
            if resolution == self.cache.resolution:  # the lattice is the grid itself
                first = prompt * len(points) + start
                found = self.heads.signed_distance(piece, table[first : first + len(piece)])
            else:
                owner = torch.arange(prompt, owners.stop, device=piece.device)
                found = self.signed_distance(piece, owner.repeat_interleave(len(piece) // len(owners)))
            values[prompt : owners.stop, start : start + rows] = found.view(len(owners), -1)
        return values.reshape(prompts, resolution, resolution, resolution)


def points_ahead(points: Tensor, epsilon: float) -> Tensor:
    """Points [M, 3] moved by `epsilon` along each axis: [3 M, 3], three a point."""
    return (points[:, None] + epsilon * torch.eye(3, dtype=points.dtype, device=points.device)).reshape(-1, 3)


def forward_differences(center: Tensor, ahead: Tensor, epsilon: float) -> Tensor:
    """Values [M] at points and [3 M] at `points_ahead` of them -> gradients [M, 3]."""
    return (ahead.reshape(-1, 3) - center[:, None]) / epsilon
