"""The hash grid as Warp kernels: one source for CPU and CUDA, float32, twice differentiable.

Each level interpolates with eight corner weights w_c(x). With T the table and i_c the corners' entries:

    features       f        = sum_c  w_c         T[i_c]
    along v        D_v f    = sum_c (v . grad w_c) T[i_c]

Backward needs <grad_f, grad f> for positions and a scatter of w_c grad_f for the table; the backward of that needs
the same three sums with w_c replaced by its derivative along v. So three kernels, each with a ``directional`` switch,
give all first and second derivatives. A thread handles one point on one level; levels come one after another, so that
on a CPU one level's table stays in the cache and sums are added up in one order, which makes them repeatable bit for
bit. On CUDA the atomic additions have no fixed order.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from threestudio.ops.hash_grid import HASH_PRIMES, HashGridLayout
from threestudio.ops.warp_setup import wp

HASH_Y = wp.constant(wp.uint32(HASH_PRIMES[1]))
HASH_Z = wp.constant(wp.uint32(HASH_PRIMES[2]))


@wp.func
def entry_of(cell: wp.vec3i, a: int, b: int, c: int, shape: wp.array2d(dtype=wp.int32), level: int):
    """Entry of the table at corner (a, b, c) of a cell (hash_grid.entry_index)."""
    x = wp.uint32(cell[0] + a)
    y = wp.uint32(cell[1] + b)
    z = wp.uint32(cell[2] + c)
    resolution = wp.uint32(shape[level, 0])
    index = x + resolution * (y + resolution * z)
    if shape[level, 3] == 0:
        index = x ^ (y * HASH_Y) ^ (z * HASH_Z)
    return shape[level, 1] + wp.int32(index % wp.uint32(shape[level, 2]))


@wp.func
def axis_weight(fraction: wp.vec3, axis: int, upper: int):
    if upper == 1:
        return fraction[axis]
    return 1.0 - fraction[axis]


@wp.func
def axis_slope(upper: int):
    return wp.float32(2 * upper - 1)


@wp.func
def corner_weight(fraction: wp.vec3, v: wp.vec3, directional: wp.bool, a: int, b: int, c: int):
    """Weight of corner (a, b, c), or its derivative along v (in cells)."""
    wx = axis_weight(fraction, 0, a)
    wy = axis_weight(fraction, 1, b)
    wz = axis_weight(fraction, 2, c)
    if directional:
        return v[0] * axis_slope(a) * wy * wz + v[1] * wx * axis_slope(b) * wz + v[2] * wx * wy * axis_slope(c)
    return wx * wy * wz


@wp.func
def corner_gradient(fraction: wp.vec3, v: wp.vec3, directional: wp.bool, a: int, b: int, c: int):
    """Gradient of corner_weight in the fraction."""
    wx = axis_weight(fraction, 0, a)
    wy = axis_weight(fraction, 1, b)
    wz = axis_weight(fraction, 2, c)
    sx = axis_slope(a)
    sy = axis_slope(b)
    sz = axis_slope(c)
    if directional:
        return wp.vec3(
            sx * (v[1] * sy * wz + v[2] * wy * sz),
            sy * (v[0] * sx * wz + v[2] * wx * sz),
            sz * (v[0] * sx * wy + v[1] * wx * sy),
        )
    return wp.vec3(sx * wy * wz, wx * sy * wz, wx * wy * sz)


@wp.func
def locate(position: wp.vec3, scale: float):
    """The cell that holds a position, and where in it."""
    scaled = position * scale + wp.vec3(0.5, 0.5, 0.5)
    cell = wp.vec3(wp.floor(scaled[0]), wp.floor(scaled[1]), wp.floor(scaled[2]))
    return wp.vec3i(wp.int32(cell[0]), wp.int32(cell[1]), wp.int32(cell[2])), scaled - cell


@wp.kernel(enable_backward=False)
def features_kernel(
    positions: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    directional: wp.bool,
    table: wp.array2d(dtype=wp.float32),
    scales: wp.array(dtype=wp.float32),
    shape: wp.array2d(dtype=wp.int32),  # resolution, offset, size, dense of each level
    features: wp.array2d(dtype=wp.float32),
):
    level, n = wp.tid()
    cell, fraction = locate(positions[n], scales[level])
    v = wp.vec3(0.0, 0.0, 0.0)
    if directional:
        v = directions[n] * scales[level]
    n_features = table.shape[1]
    first = level * n_features
    for corner in range(8):
        a = corner & 1
        b = (corner >> 1) & 1
        c = corner >> 2
        entry = entry_of(cell, a, b, c, shape, level)
        weight = corner_weight(fraction, v, directional, a, b, c)
        for f in range(n_features):
            features[n, first + f] += weight * table[entry, f]


@wp.kernel(enable_backward=False)
def scatter_kernel(
    positions: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    directional: wp.bool,
    grad_features: wp.array2d(dtype=wp.float32),
    scales: wp.array(dtype=wp.float32),
    shape: wp.array2d(dtype=wp.int32),
    grad_table: wp.array2d(dtype=wp.float32),
):
    level, n = wp.tid()
    cell, fraction = locate(positions[n], scales[level])
    v = wp.vec3(0.0, 0.0, 0.0)
    if directional:
        v = directions[n] * scales[level]
    n_features = grad_table.shape[1]
    first = level * n_features
    for corner in range(8):
        a = corner & 1
        b = (corner >> 1) & 1
        c = corner >> 2
        entry = entry_of(cell, a, b, c, shape, level)
        weight = corner_weight(fraction, v, directional, a, b, c)
        for f in range(n_features):
            wp.atomic_add(grad_table, entry, f, weight * grad_features[n, first + f])


@wp.kernel(enable_backward=False)
def positions_kernel(
    positions: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    directional: wp.bool,
    grad_features: wp.array2d(dtype=wp.float32),
    table: wp.array2d(dtype=wp.float32),
    scales: wp.array(dtype=wp.float32),
    shape: wp.array2d(dtype=wp.int32),
    grad_positions: wp.array(dtype=wp.vec3),
):
    level, n = wp.tid()
    cell, fraction = locate(positions[n], scales[level])
    v = wp.vec3(0.0, 0.0, 0.0)
    if directional:
        v = directions[n] * scales[level]
    n_features = table.shape[1]
    first = level * n_features
    total = wp.vec3(0.0, 0.0, 0.0)
    for corner in range(8):
        a = corner & 1
        b = (corner >> 1) & 1
        c = corner >> 2
        entry = entry_of(cell, a, b, c, shape, level)
        inner = float(0.0)
        for f in range(n_features):
            inner += grad_features[n, first + f] * table[entry, f]
        total += inner * corner_gradient(fraction, v, directional, a, b, c)
    wp.atomic_add(grad_positions, n, total * scales[level])


@lru_cache(maxsize=16)
def _level_arrays(layout: HashGridLayout, device: torch.device) -> Tuple[Tensor, Tensor]:
    scales = torch.tensor([level.scale for level in layout.levels], dtype=torch.float32, device=device)
    shape = [[level.resolution, level.offset, level.size, int(level.dense)] for level in layout.levels]
    return scales, torch.tensor(shape, dtype=torch.int32, device=device)


def _vectors(x: Tensor) -> Any:
    return wp.from_torch(x.detach().contiguous(), dtype=wp.vec3)


def _array(x: Tensor) -> Any:
    return wp.from_torch(x.detach().contiguous())


def _launch(kernel: Any, grid: "_Grid", positions: Tensor, direction: Optional[Tensor], inputs: list, output: Any) -> None:
    layout, n_active = grid
    scales, shape = _level_arrays(layout, positions.device)
    arguments = [_vectors(positions), _vectors(positions if direction is None else direction), direction is not None]
    arguments += [*inputs, _array(scales), _array(shape), output]
    dimensions = (n_active, positions.shape[0])
    device = wp.device_from_torch(positions.device)
    if device.is_cuda:
        wp.launch(kernel, dimensions, arguments, device=device, stream=wp.stream_from_torch(positions.device))
    else:
        wp.launch(kernel, dimensions, arguments, device=device)


_Grid = Tuple[HashGridLayout, int]  # the layout and how many of its levels are read


def _features(grid: _Grid, positions: Tensor, direction: Optional[Tensor], table: Tensor) -> Tensor:
    """[N, L F]: features, or their derivative along direction [N, 3]."""
    layout, _ = grid
    features = positions.new_zeros(positions.shape[0], layout.n_levels * layout.n_features)
    _launch(features_kernel, grid, positions, direction, [_array(table)], _array(features))
    return features


def _scatter(grid: _Grid, positions: Tensor, direction: Optional[Tensor], grad_features: Tensor) -> Tensor:
    """[n_entries, F]: gradient in the table of <grad_features, _features>."""
    layout, _ = grid
    grad_table = positions.new_zeros(layout.n_entries, layout.n_features)
    _launch(scatter_kernel, grid, positions, direction, [_array(grad_features)], _array(grad_table))
    return grad_table


def _positions(grid: _Grid, positions: Tensor, direction: Optional[Tensor], grad_features: Tensor, table: Tensor) -> Tensor:
    """[N, 3]: gradient in the positions of <grad_features, _features>."""
    grad_positions = torch.zeros_like(positions)
    _launch(positions_kernel, grid, positions, direction, [_array(grad_features), _array(table)], _vectors(grad_positions))
    return grad_positions


class _HashGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, positions: Tensor, table: Tensor, grid: _Grid) -> Tensor:
        ctx.save_for_backward(positions, table)
        ctx.grid = grid
        return _features(grid, positions, None, table)

    @staticmethod
    def backward(ctx: Any, grad_features: Tensor) -> tuple:
        positions, table = ctx.saved_tensors
        need_positions, need_table, _ = ctx.needs_input_grad
        grad_positions, grad_table = _HashGridBackward.apply(grad_features, positions, table, ctx.grid, need_positions, need_table)
        return grad_positions, grad_table, None


class _HashGridBackward(torch.autograd.Function):
    """The first derivatives as a function that can itself be differentiated."""

    @staticmethod
    def forward(
        ctx: Any, grad_features: Tensor, positions: Tensor, table: Tensor, grid: _Grid, need_positions: bool, need_table: bool
    ) -> tuple:
        ctx.save_for_backward(grad_features, positions, table)
        ctx.set_materialize_grads(False)
        ctx.grid = grid
        grad_positions = _positions(grid, positions, None, grad_features, table) if need_positions else None
        grad_table = _scatter(grid, positions, None, grad_features) if need_table else None
        return grad_positions, grad_table

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_grad_positions: Optional[Tensor], grad_grad_table: Optional[Tensor]) -> tuple:
        grad_features, positions, table = ctx.saved_tensors
        need_features, need_positions, need_table = ctx.needs_input_grad[:3]
        grid, v, t = ctx.grid, grad_grad_positions, grad_grad_table
        to_features = to_positions = to_table = None
        if need_features:
            to_features = _sum(
                None if v is None else _features(grid, positions, v, table), None if t is None else _features(grid, positions, None, t)
            )
        if need_positions:
            to_positions = _sum(
                None if v is None else _positions(grid, positions, v, grad_features, table),
                None if t is None else _positions(grid, positions, None, grad_features, t),
            )
        if need_table and v is not None:
            to_table = _scatter(grid, positions, v, grad_features)
        return to_features, to_positions, to_table, None, None, None


def _sum(a: Optional[Tensor], b: Optional[Tensor]) -> Optional[Tensor]:
    return b if a is None else a if b is None else a + b


def hash_grid_warp(positions: Tensor, table: Tensor, layout: HashGridLayout, n_active: int) -> Tensor:
    """positions [N, 3] in [0, 1], table [n_entries, F], both float32 -> [N, n_levels * F]."""
    return _HashGrid.apply(positions, table, (layout, n_active))
