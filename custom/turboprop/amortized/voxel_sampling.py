"""Trilinear interpolation of many feature grids at packed points."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def corner_weights(points: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """The eight voxels around each point and their shares.

    points [M, 3] (x, y, z) in [-1, 1], voxel centres at (i + 0.5) / R of the cube. Points
    beyond the outermost centres take the border's value.
    -> flat voxel indices [M, 8] into (z, y, x) order, weights [M, 8] that sum to 1.
    """
    position = ((points + 1) * (0.5 * resolution) - 0.5).clamp(0, resolution - 1)
    low = position.detach().floor().clamp_max(resolution - 2).long()
    share = position - low  # [M, 3]
    strides = (1, resolution, resolution * resolution)  # Python's numbers: one read from a GPU is a wait for it
    base = low[:, 0] + low[:, 1] * strides[1] + low[:, 2] * strides[2]
    indices, weights = [], []
    for corner in range(8):
        bits = [corner >> axis & 1 for axis in range(3)]
        indices.append(base + sum(strides[axis] for axis in range(3) if bits[axis]))
        weights.append(
            torch.stack([share[:, axis] if bits[axis] else 1 - share[:, axis] for axis in range(3)], -1).prod(-1)
        )
    return torch.stack(indices, -1), torch.stack(weights, -1)


def flatten_grids(grids: Tensor) -> Tensor:
    """Grids [P, C, R, R, R] (z, y, x) as one table [P * R^3, C], a row a voxel."""
    return grids.permute(0, 2, 3, 4, 1).reshape(-1, grids.shape[1])


def sample_grids(table: Tensor, points: Tensor, owner: Tensor, resolution: int) -> Tensor:
    """Interpolate the grid of each point's owner: table [P * R^3, C], points [M, 3] in [-1, 1], owner [M] in [0, P) -> [M, C]."""
    indices, weights = corner_weights(points, resolution)
    indices = indices + (owner * resolution**3)[:, None]
    return F.embedding_bag(indices, table, per_sample_weights=weights, mode="sum")
