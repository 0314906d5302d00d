"""The hash grid in plain torch, any floating type."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from threestudio.ops.hash_grid.layout import HASH_PRIMES, HashGridLayout, Level

UINT32 = 0xFFFFFFFF


def hash_grid_torch(positions: Tensor, table: Tensor, layout: HashGridLayout, n_active: int) -> Tensor:
    """Reference: positions [N, 3] in [0, 1] -> [N, n_levels * n_features]; autograd gives all derivatives."""
    outputs = []
    for level in layout.levels[:n_active]:
        scaled = positions * level.scale + 0.5  # tiny-cuda-nn's half-cell shift
        cell = scaled.detach().floor()
        fraction = scaled - cell
        cell = cell.long()
        total = table.new_zeros(())
        for corner in itertools.product((0, 1), repeat=3):
            offset = torch.tensor(corner, device=positions.device)
            weight = torch.where(offset.bool(), fraction, 1.0 - fraction).prod(-1, keepdim=True)
            # index_select, whose gradient (index_add) adds up in one order on a CPU: bit-for-bit repeatable.
            total = total + weight * table.index_select(0, entry_index(cell + offset, level))
        outputs.append(total)
    closed = positions.new_zeros(positions.shape[0], (layout.n_levels - n_active) * layout.n_features)
    return torch.cat([*outputs, closed], -1)


def entry_index(vertex: Tensor, level: Level) -> Tensor:
    """Grid vertices [..., 3] int64 -> entries of the table [...] (Mueller et al. 2022, eq. 4, in 32-bit arithmetic)."""
    x, y, z = (vertex & UINT32).unbind(-1)
    if level.dense:
        index = x + level.resolution * (y + level.resolution * z)
    else:
        index = (x * HASH_PRIMES[0]) ^ (y * HASH_PRIMES[1] & UINT32) ^ (z * HASH_PRIMES[2] & UINT32)
    return level.offset + (index & UINT32) % level.size
