"""Trilinear interpolation of many feature grids at packed points."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .field import FeatureTable


def corner_weights(points: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """The eight voxels around each point and their shares.

    points [M, 3] (x, y, z) in [-1, 1], voxel centres at (i + 0.5) / R of the cube. Points
    beyond the outermost centres take the border's value.
    -> flat voxel indices [M, 8] into (z, y, x) order, weights [M, 8] that sum to 1.
    """
    position = ((points + 1) * (0.5 * resolution) - 0.5).clamp(0, resolution - 1)
    low = position.detach().floor().clamp_max(resolution - 2).long()
    share = position - low  # [M, 3]
    x, y, z = low.unbind(-1)
    base = x + resolution * (y + resolution * z)
    # Corner 4 k + 2 j + i is i voxels on in x, j in y and k in z.
    steps = [i + resolution * (j + resolution * k) for k in (0, 1) for j in (0, 1) for i in (0, 1)]
    along_x, along_y, along_z = torch.stack([1 - share, share], -1).unbind(1)  # [M, 2] each
    weights = along_x[:, None, None, :] * along_y[:, None, :, None] * along_z[:, :, None, None]
    return torch.stack([base + step for step in steps], -1), weights.reshape(-1, 8)


class _RowsOfVoxels(torch.autograd.Function):
    """Channels last in the table, its gradient laid out as the grids, as the convolutions before it want it."""

    @staticmethod
    def forward(ctx: Any, grids: Tensor) -> Tensor:  # [P, C, R, R, R] -> [P * R^3, C]
        ctx.shape = grids.shape
        last = grids.is_contiguous(memory_format=torch.channels_last_3d)
        ctx.layout = torch.channels_last_3d if last else torch.contiguous_format
        return grids.permute(0, 2, 3, 4, 1).reshape(-1, grids.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        prompts, channels, *sides = ctx.shape
        return gradient.reshape(prompts, *sides, channels).permute(0, 4, 1, 2, 3).contiguous(memory_format=ctx.layout)


def flatten_grids(grids: Tensor) -> Tensor:
    """Grids [P, C, R, R, R] (z, y, x) as one table [P * R^3, C], a row a voxel."""
    return _RowsOfVoxels.apply(grids)


def sample_grids(table: Tensor, points: Tensor, owner: Tensor, resolution: int) -> Tensor:
    """Interpolate the grid of each point's owner.

    table [P * R^3, C], points [M, 3] in [-1, 1], owner [M] in [0, P) -> [M, C].
    """
    indices, weights = corner_weights(points, resolution)
    indices = indices + (owner * resolution**3)[:, None]
    return F.embedding_bag(indices, table, per_sample_weights=weights, mode="sum")


class VoxelSpace(FeatureTable):
    """A grid of features for each prompt, table [P * R^3, F]. A `Space` of a field."""

    @property
    def prompts(self) -> int:
        return self.table.shape[0] // self.resolution**3

    def features(self, points: Tensor, owner: Tensor) -> Tensor:
        return sample_grids(self.table, points, owner, self.resolution)

    def stored(self, resolution: int, first: int, count: int) -> Tensor | None:
        """The table's rows, where the lattice is the grid itself."""
        return self.table[first : first + count] if resolution == self.resolution else None
