"""Multiresolution hash grid (Mueller et al. 2022, "Instant neural graphics primitives"): one function, three backends.

``hash_grid`` maps positions [N, 3] in the unit cube to features [N, n_levels * n_features]. All backends give the
same values, gradients and second derivatives:

- torch: the reference below, in any floating type;
- warp: one kernel source for CPU and CUDA, float32 (hash_grid_warp.py);
- tinycudann: where a user has it, on CUDA, float32; ``auto`` takes it once it has agreed (agreement.py).

Level resolutions, table sizes, the hash and what is hashed follow tiny-cuda-nn, so tables have its layout.
Positions outside the unit cube count as the nearest point of its surface, with zero gradient.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Callable, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from threestudio.ops.agreement import agrees, wave
from threestudio.utils.errors import UserError

BACKENDS = ("auto", "torch", "warp", "tinycudann")
HASH_PRIMES = (1, 2654435761, 805459861)
UINT32 = 0xFFFFFFFF


class Level(NamedTuple):
    scale: float  # cells along an axis, less one where it is whole
    resolution: int  # vertices along an axis
    offset: int  # first entry in the table
    size: int  # entries
    dense: bool  # every vertex has an entry of its own: no hash


@dataclass(frozen=True)
class HashGridLayout:
    """Shape of a hash grid. Entries of all levels stand one after another in one table [n_entries, n_features]."""

    n_levels: int = 16
    n_features: int = 2  # features of each entry
    log2_hashmap_size: int = 19  # most entries of a level
    base_resolution: int = 16  # of the coarsest level
    per_level_scale: float = 2.0  # growth of the resolution from level to level

    def __post_init__(self) -> None:
        for name, low, high in (("n_levels", 1, 64), ("n_features", 1, 16), ("log2_hashmap_size", 3, 24), ("base_resolution", 2, 65536)):
            if not low <= getattr(self, name) <= high:
                raise UserError(f"hash grid: {name}: expected {low} to {high}, got {getattr(self, name)}")
        finest = self.base_resolution * self.per_level_scale ** (self.n_levels - 1)
        if not (self.per_level_scale >= 1 and finest < 2**24):
            raise UserError(
                f"hash grid: per_level_scale={self.per_level_scale} with {self.n_levels} levels: expected >= 1 and a finest "
                f"resolution under 2^24 (float32 positions tell no more apart), got {finest:.4g}"
            )

    @cached_property
    def levels(self) -> List[Level]:
        levels, offset = [], 0
        log2_scale = np.log2(np.float32(self.per_level_scale))
        for index in range(self.n_levels):
            # float32 as in tiny-cuda-nn, where rounding decides the ceiling.
            scale = float(np.exp2(np.float32(index) * log2_scale) * np.float32(self.base_resolution) - np.float32(1))
            resolution = math.ceil(scale) + 1
            n_vertices = resolution**3  # a Python int: 2048^3 is beyond int32
            size = min(math.ceil(n_vertices / 8) * 8, 2**self.log2_hashmap_size)
            levels.append(Level(scale, resolution, offset, size, n_vertices <= size))
            offset += size
        return levels

    @cached_property
    def n_entries(self) -> int:
        return sum(level.size for level in self.levels)


def available_backends(device: torch.device) -> List[str]:
    """Backends that can run on this device, fastest first."""
    names = []
    if device.type == "cuda" and importlib.util.find_spec("tinycudann") is not None:
        names.append("tinycudann")
    if device.type in ("cpu", "cuda") and importlib.util.find_spec("warp") is not None:
        names.append("warp")
    return names + ["torch"]


def hash_grid(
    positions: Tensor, table: Tensor, layout: HashGridLayout, n_active_levels: Optional[int] = None, backend: str = "auto"
) -> Tensor:
    """Features of positions, trilinear in each level; twice differentiable in positions and table.

    Args:
        positions: [N, 3] in [0, 1]; table: [layout.n_entries, layout.n_features].
        n_active_levels: only the coarsest ones are read, the others give zeros; None: all.
    Returns:
        [N, n_levels * n_features], level by level, in the table's type.
    """
    if backend not in BACKENDS:
        raise UserError(f"hash grid: backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise ValueError(f"hash grid: positions: expected [N, 3], got {list(positions.shape)}")
    if tuple(table.shape) != (layout.n_entries, layout.n_features):
        raise ValueError(f"hash grid: table: expected {[layout.n_entries, layout.n_features]}, got {list(table.shape)}")
    n_active = layout.n_levels if n_active_levels is None else max(0, min(n_active_levels, layout.n_levels))
    available = available_backends(table.device)
    if backend == "auto":
        backend = _fastest(available, table, layout)
    elif backend not in available:
        raise UserError(f"hash grid: backend {backend!r} is not available on {table.device.type} here (available: {', '.join(available)})")
    positions = positions.to(table.dtype).clamp(0.0, 1.0)
    if positions.shape[0] == 0 or n_active == 0:
        return positions.new_zeros(positions.shape[0], layout.n_levels * layout.n_features) + 0.0 * table.sum()
    if backend == "warp":
        from threestudio.ops.hash_grid_warp import hash_grid_warp

        return hash_grid_warp(positions, table, layout, n_active)
    if backend == "tinycudann":
        return hash_grid_tinycudann(positions, table, layout, n_active)
    return hash_grid_torch(positions, table, layout, n_active)


def _fastest(available: List[str], table: Tensor, layout: HashGridLayout) -> str:
    if table.dtype != torch.float32:
        return "torch"
    if available[0] == "tinycudann":
        key, device = layout, table.device
        if not agrees("tinycudann", device, lambda: _compared_with_tinycudann(layout, device), key):
            return available[1]
    return available[0]


def _compared_with_tinycudann(layout: HashGridLayout, device: torch.device) -> List[Tuple[Tensor, Tensor]]:
    """Features, first derivatives, and the derivative of a normal's length in the table, of some points."""
    points = 0.05 + 0.9 * wave(64, 3, device=device, frequency=2.1)
    table = wave(layout.n_entries, layout.n_features, device=device) - 0.5

    def results(function: Callable) -> List[Tensor]:
        x, t = points.clone().requires_grad_(), table.clone().requires_grad_()
        features = function(x, t, layout, layout.n_levels)
        in_points, in_table = torch.autograd.grad(features.sin().sum(), [x, t], create_graph=True)
        (second,) = torch.autograd.grad(in_points.square().sum(), t)
        return [features, in_points, in_table, second]

    return list(zip(results(hash_grid_tinycudann), results(hash_grid_torch)))


def hash_grid_torch(positions: Tensor, table: Tensor, layout: HashGridLayout, n_active: int) -> Tensor:
    """Reference: positions [N, 3] in [0, 1] -> [N, n_levels * n_features]; autograd gives all derivatives."""
    outputs = []
    for level in layout.levels[:n_active]:
        scaled = positions * level.scale + 0.5  # tiny-cuda-nn's half-cell shift
        cell = scaled.detach().floor()
        fraction = scaled - cell
        cell = cell.long()
        total = 0.0
        for corner in itertools.product((0, 1), repeat=3):
            offset = torch.tensor(corner, device=positions.device)
            weight = torch.where(offset.bool(), fraction, 1.0 - fraction).prod(-1, keepdim=True)
            # index_select, whose gradient (index_add) adds up in one order on a CPU: bit-for-bit repeatable.
            total = total + weight * table.index_select(0, entry_index(cell + offset, level))
        outputs.append(total)
    closed = positions.new_zeros(positions.shape[0], (layout.n_levels - n_active) * layout.n_features)
    return torch.cat([*outputs, closed], -1)


def entry_index(vertex: Tensor, level: Level) -> Tensor:
    """Grid vertices [..., 3] (int64) -> entries of the table [...] (Mueller et al. 2022, eq. 4, in 32-bit arithmetic)."""
    x, y, z = (vertex & UINT32).unbind(-1)
    if level.dense:
        index = x + level.resolution * (y + level.resolution * z)
    else:
        index = (x * HASH_PRIMES[0]) ^ (y * HASH_PRIMES[1] & UINT32) ^ (z * HASH_PRIMES[2] & UINT32)
    return level.offset + (index & UINT32) % level.size


def hash_grid_tinycudann(positions: Tensor, table: Tensor, layout: HashGridLayout, n_active: int) -> Tensor:
    """The same through tinycudann's own kernels, with our table in place of its parameters."""
    encoding = _tinycudann_encoding(layout)
    features = torch.func.functional_call(encoding, {"params": table.reshape(-1)}, (positions,))
    open_features = n_active * layout.n_features
    return torch.cat([features[:, :open_features], torch.zeros_like(features[:, open_features:])], -1).to(table.dtype)


@lru_cache(maxsize=8)
def _tinycudann_encoding(layout: HashGridLayout) -> torch.nn.Module:
    import tinycudann

    config = {
        "otype": "HashGrid",
        "n_levels": layout.n_levels,
        "n_features_per_level": layout.n_features,
        "log2_hashmap_size": layout.log2_hashmap_size,
        "base_resolution": layout.base_resolution,
        "per_level_scale": layout.per_level_scale,
    }
    return tinycudann.Encoding(3, config, dtype=torch.float32)
