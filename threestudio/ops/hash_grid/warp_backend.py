"""The hash grid as Warp kernels: one source for CPU and CUDA, float32, twice differentiable.

Each level interpolates with eight corner weights w_c(x). With T the table and i_c the corners' entries:

    features       f        = sum_c  w_c         T[i_c]
    along v        D_v f    = sum_c (v . grad w_c) T[i_c]

Backward needs <grad_f, grad f> for positions and a scatter of w_c grad_f for the table; the backward of that needs
the same three sums with w_c replaced by its derivative along v. So three kernels, each in a plain and a directional
form, give all first and second derivatives.

What makes them fast on a CPU is memory. Levels come one after another, so that one level's table stays in the cache,
and inside features lie level by level, [L, N, F], so that a level's pass reads and writes one stretch of memory and
not a few bytes out of each point's row. An entry's features are one vector, its length known to the compiler. A
launch is split over ``torch.get_num_threads()`` threads: by points where each point has an output of its own, by
levels where points add up in the table. So each number is summed up by one thread, in one order, and results repeat
bit for bit whatever the number of threads. On CUDA the atomic additions have no fixed order.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from threestudio.ops.hash_grid.layout import HashGridLayout
from threestudio.ops.hash_grid.warp_kernels import hash_grid_kernels
from threestudio.ops.warp_runtime import as_array, launch_parts, shares, wp


@lru_cache(maxsize=16)
def _level_arrays(layout: HashGridLayout, device: torch.device) -> tuple[Tensor, Tensor]:
    scales = torch.tensor([level.scale for level in layout.levels], dtype=torch.float32, device=device)
    shape = [[level.resolution, level.offset, level.size, int(level.dense)] for level in layout.levels]
    return scales, torch.tensor(shape, dtype=torch.int32, device=device)


_Grid = tuple[HashGridLayout, int]  # the layout and how many of its levels are read


def _launch(
    kernel: Any, grid: _Grid, positions: Tensor, direction: Tensor | None, arrays: list, split_points: bool = True
) -> None:
    """split_points: threads share the points; otherwise the levels."""
    layout, n_active = grid
    device, n_points = positions.device, positions.shape[0]
    place = [as_array(positions, wp.vec3), as_array(positions if direction is None else direction, wp.vec3)]
    place += [as_array(x) for x in _level_arrays(layout, device)]
    chunk = 1 if device.type == "cuda" else n_points
    stretches = shares(n_points, device, work=n_active)
    if split_points:
        ranges = [(0, n_active, first, last) for first, last in stretches]
    else:
        ranges = [(0, n_active, 0, n_points)] if len(stretches) == 1 else [(k, 1, 0, n_points) for k in range(n_active)]
    parts = [
        ((levels, -(-(last - first) // chunk)), [*place, level, first, last, chunk, *arrays])
        for level, levels, first, last in ranges
    ]
    launch_parts(kernel, parts, device)


def _by_level(features: Tensor, layout: HashGridLayout) -> Tensor:
    """[N, L * F] -> [L, N, F]"""
    return features.reshape(-1, layout.n_levels, layout.n_features).transpose(0, 1).contiguous()


def _by_point(features: Tensor, layout: HashGridLayout) -> Tensor:
    """[L open ones, N, F] -> [N, L * F], zeros for the levels that are closed."""
    n_active, n_points, n_features = features.shape
    out = features.new_empty(n_points, layout.n_levels, n_features)
    out[:, :n_active] = features.transpose(0, 1)
    out[:, n_active:] = 0.0
    return out.view(n_points, -1)


def _features(grid: _Grid, positions: Tensor, direction: Tensor | None, table: Tensor) -> Tensor:
    """[N, L * F]: features, or their derivative along direction [N, 3]."""
    layout, n_active = grid
    kernels = hash_grid_kernels(layout.n_features, direction is not None)
    features = positions.new_empty(n_active, positions.shape[0], layout.n_features)
    arrays = [as_array(table, kernels.entry_type), as_array(features, kernels.entry_type)]
    _launch(kernels.features, grid, positions, direction, arrays)
    return _by_point(features, layout)


def _scatter(grid: _Grid, positions: Tensor, direction: Tensor | None, grad_features: Tensor) -> Tensor:
    """[n_entries, F]: gradient in the table of <grad_features, _features>; grad_features [L, N, F]."""
    layout, _ = grid
    kernels = hash_grid_kernels(layout.n_features, direction is not None)
    grad_table = positions.new_zeros(layout.n_entries, layout.n_features)
    arrays = [as_array(grad_features, kernels.entry_type), as_array(grad_table, kernels.entry_type)]
    _launch(kernels.scatter, grid, positions, direction, arrays, split_points=False)
    return grad_table


def _positions(
    grid: _Grid, positions: Tensor, direction: Tensor | None, grad_features: Tensor, table: Tensor
) -> Tensor:
    """[N, 3]: gradient in the positions of <grad_features, _features>; grad_features [L, N, F]."""
    layout, _ = grid
    kernels = hash_grid_kernels(layout.n_features, direction is not None)
    grad_positions = torch.zeros_like(positions)
    arrays = [
        as_array(grad_features, kernels.entry_type),
        as_array(table, kernels.entry_type),
        as_array(grad_positions, wp.vec3),
    ]
    _launch(kernels.positions, grid, positions, direction, arrays)
    return grad_positions


class _InTable(torch.autograd.Function):
    """Features as a function of the table alone; positions come in a tuple, which autograd does not look into."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, positions: tuple[Tensor], grid: _Grid) -> Tensor:
        ctx.save_for_backward(positions[0], table)
        ctx.grid = grid
        return _features(grid, positions[0], None, table)

    @staticmethod
    def backward(ctx: Any, grad_features: Tensor) -> tuple:
        positions, table = ctx.saved_tensors
        return _HashGridBackward.apply(grad_features, positions, table, ctx.grid, False, True)[1], None, None


class _InPositions(torch.autograd.Function):
    """Passes features on and adds how they hang on positions; the table comes in a tuple."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, positions: Tensor, table: tuple[Tensor], grid: _Grid) -> Tensor:
        ctx.save_for_backward(positions, table[0])
        ctx.grid = grid
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, grad_features: Tensor) -> tuple:
        positions, table = ctx.saved_tensors
        return (
            grad_features,
            _HashGridBackward.apply(grad_features, positions, table, ctx.grid, True, False)[0],
            None,
            None,
        )


class _HashGridBackward(torch.autograd.Function):
    """The first derivatives as a function that can itself be differentiated."""

    @staticmethod
    def forward(
        ctx: Any,
        grad_features: Tensor,
        positions: Tensor,
        table: Tensor,
        grid: _Grid,
        need_positions: bool,
        need_table: bool,
    ) -> tuple:
        grad_by_level = _by_level(grad_features, grid[0])
        ctx.save_for_backward(grad_by_level, positions, table)
        ctx.set_materialize_grads(False)
        ctx.grid = grid
        grad_positions = _positions(grid, positions, None, grad_by_level, table) if need_positions else None
        grad_table = _scatter(grid, positions, None, grad_by_level) if need_table else None
        return grad_positions, grad_table

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_grad_positions: Tensor | None, grad_grad_table: Tensor | None) -> tuple:
        grad_by_level, positions, table = ctx.saved_tensors
        need_features, need_positions, need_table = ctx.needs_input_grad[:3]
        grid, v, t = ctx.grid, grad_grad_positions, grad_grad_table
        to_features = to_positions = to_table = None
        if need_features:
            to_features = _sum(
                None if v is None else _features(grid, positions, v, table),
                None if t is None else _features(grid, positions, None, t),
            )
        if need_positions:
            to_positions = _sum(
                None if v is None else _positions(grid, positions, v, grad_by_level, table),
                None if t is None else _positions(grid, positions, None, grad_by_level, t),
            )
        if need_table and v is not None:
            to_table = _scatter(grid, positions, v, grad_by_level)
        return to_features, to_positions, to_table, None, None, None


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def hash_grid_warp(positions: Tensor, table: Tensor, layout: HashGridLayout, n_active: int) -> Tensor:
    """positions [N, 3] in [0, 1], table [n_entries, F], both float32 -> [N, n_levels * F].

    Two nodes in autograd's graph, one for each input, because autograd runs only the nodes that it needs: for a normal,
    which is a gradient in positions, no gradient of the table is made.
    """
    grid = (layout, n_active)
    features = _InTable.apply(table, (positions,), grid)
    return _InPositions.apply(features, positions, (table,), grid) if positions.requires_grad else features
