"""Shape of a hash grid: what levels it has and where each one's entries stand in the table; tiny-cuda-nn's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from threestudio.utils.errors import UserError

HASH_PRIMES = (1, 2654435761, 805459861)


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
        bounds = {
            "n_levels": (1, 64),
            "n_features": (1, 16),
            "log2_hashmap_size": (3, 24),
            "base_resolution": (2, 65536),
        }
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise UserError(f"{name}: expected {low} to {high}, got {getattr(self, name)}")
        finest = self.base_resolution * self.per_level_scale ** (self.n_levels - 1)
        if not (self.per_level_scale >= 1 and finest < 2**24):
            raise UserError(
                f"per_level_scale: {self.per_level_scale} with {self.n_levels} levels: expected >= 1 and a "
                f"finest resolution under 2^24 (float32 positions tell no more apart), got {finest:.4g}"
            )

    @cached_property
    def levels(self) -> list[Level]:
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
