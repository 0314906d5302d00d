"""Multiresolution hash grid (Mueller et al. 2022, "Instant neural graphics primitives"): one function, three backends.

``hash_grid`` maps positions [N, 3] in the unit cube to features [N, n_levels * n_features]. All backends give the
same values, gradients and second derivatives:

- torch: reference.py, in any floating type;
- warp: one kernel source for CPU and CUDA, float32 (warp_backend.py);
- tinycudann: where a user has it, on CUDA, float32; ``auto`` takes it once it has agreed (tinycudann_backend.py).

Level resolutions, table sizes, the hash and what is hashed follow tiny-cuda-nn, so tables have its layout (layout.py).
Positions outside the unit cube count as the nearest point of its surface, with zero gradient.
"""

from __future__ import annotations

from torch import Tensor

from threestudio.ops.backends import Backends
from threestudio.ops.hash_grid.layout import HashGridLayout
from threestudio.ops.hash_grid.reference import hash_grid_torch
from threestudio.ops.hash_grid.tinycudann_backend import hash_grid_tinycudann, tinycudann_agrees

_BACKENDS = Backends("hash grid", "tinycudann")
available_backends = _BACKENDS.available


def hash_grid(
    positions: Tensor,
    table: Tensor,
    layout: HashGridLayout,
    n_active_levels: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Features of positions, trilinear in each level; twice differentiable in positions and table.

    Args:
        positions: [N, 3] in [0, 1]; table: [layout.n_entries, layout.n_features].
        n_active_levels: only the coarsest ones are read, the others give zeros; None: all.
    Returns:
        [N, n_levels * n_features], level by level, in the table's type.
    """
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise ValueError(f"hash grid: positions: expected [N, 3], got {list(positions.shape)}")
    if tuple(table.shape) != (layout.n_entries, layout.n_features):
        raise ValueError(f"hash grid: table: expected {[layout.n_entries, layout.n_features]}, got {list(table.shape)}")
    n_active = layout.n_levels if n_active_levels is None else max(0, min(n_active_levels, layout.n_levels))
    backend = _BACKENDS.choose(backend, table, agrees=lambda: tinycudann_agrees(layout, table.device))
    positions = positions.to(table.dtype).clamp(0.0, 1.0)
    if positions.shape[0] == 0 or n_active == 0:
        return positions.new_zeros(positions.shape[0], layout.n_levels * layout.n_features) + 0.0 * table.sum()
    if backend == "warp":
        from threestudio.ops.hash_grid.warp_backend import hash_grid_warp

        return hash_grid_warp(positions, table, layout, n_active)
    if backend == "tinycudann":
        return hash_grid_tinycudann(positions, table, layout, n_active)
    return hash_grid_torch(positions, table, layout, n_active)
