"""A library of signed distance fields, one a prompt, decoded from feature grids."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .voxel_sampling import flatten_grids, sample_grids


@dataclass
class SpaceCache:
    """What a generator made of P prompts, ready to be asked at points."""

    table: Tensor  # [P * R^3, F] features, a row a voxel
    resolution: int  # R

    @property
    def prompts(self) -> int:
        return self.table.shape[0] // self.resolution**3

    def select(self, index: int) -> "SpaceCache":
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

    def signed_distance(self, points: Tensor, owner: Tensor) -> Tensor:  # [M, 3], [M] -> [M]
        return self.heads.signed_distance(points, self.features(points, owner))

    def gradient(self, points: Tensor, owner: Tensor, epsilon: float, center: Tensor | None = None) -> Tensor:
        """Forward differences of the signed distance, step `epsilon` world units: [M, 3], [M] -> [M, 3]."""
        if center is None:
            center = self.signed_distance(points, owner)
        moved = points[:, None] + epsilon * torch.eye(3, dtype=points.dtype, device=points.device)
        ahead = self.signed_distance(moved.reshape(-1, 3), owner.repeat_interleave(3)).reshape(-1, 3)
        return (ahead - center[:, None]) / epsilon

    @torch.no_grad()
    def lattice(self, resolution: int) -> Tensor:
        """Signed distances at the centres of a G^3 lattice of the cube: -> [P, G, G, G] (z, y, x)."""
        line = (torch.arange(resolution, device=self.cache.table.device) + 0.5) / resolution * 2 - 1
        z, y, x = torch.meshgrid(line, line, line, indexing="ij")
        points = (torch.stack([x, y, z], -1) * self.radius).reshape(-1, 3).to(self.cache.table.dtype)
        if resolution == self.cache.resolution:
            features = self.cache.table  # the lattice is the grid itself
            values = self.heads.signed_distance(points.repeat(self.cache.prompts, 1), features)
        else:
            owner = torch.arange(self.cache.prompts, device=points.device).repeat_interleave(len(points))
            values = self.signed_distance(points.repeat(self.cache.prompts, 1), owner)
        return values.reshape(self.cache.prompts, resolution, resolution, resolution)
