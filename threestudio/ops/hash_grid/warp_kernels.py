"""The kernels of warp_backend.py, made for each number of features.

(No ``from __future__ import annotations`` here: Warp reads the annotations, and these name local types.)
"""

from functools import lru_cache
from typing import Any, NamedTuple

from threestudio.ops.hash_grid.layout import HASH_PRIMES
from threestudio.ops.warp_runtime import wp

HASH_Y = wp.constant(wp.uint32(HASH_PRIMES[1]))
HASH_Z = wp.constant(wp.uint32(HASH_PRIMES[2]))


@wp.struct
class Level:
    """One level of the layout, as the kernels need it."""

    scale: wp.float32
    offset: wp.int32
    size: wp.uint32
    dense: wp.bool
    stride_y: wp.uint32  # of a vertex's y in its entry's index
    stride_z: wp.uint32


@wp.func
def level_at(scales: wp.array(dtype=wp.float32), shape: wp.array2d(dtype=wp.int32), index: int):
    level = Level()
    level.scale = scales[index]
    level.offset = shape[index, 1]
    level.size = wp.uint32(shape[index, 2])
    level.dense = shape[index, 3] != 0
    level.stride_y = HASH_Y
    level.stride_z = HASH_Z
    if level.dense:
        resolution = wp.uint32(shape[index, 0])
        level.stride_y = resolution
        level.stride_z = resolution * resolution
    return level


@wp.func
def floor_or_zero(x: wp.float32):
    """floor(x); 0 where x is NaN, whose conversion to an integer could be anything."""
    if x >= 0.0:
        return wp.floor(x)
    return 0.0


@wp.func
def cell_of(scaled: wp.vec3):
    return wp.vec3(floor_or_zero(scaled[0]), floor_or_zero(scaled[1]), floor_or_zero(scaled[2]))


@wp.func
def entry_of(level: Level, cell: wp.vec3, a: int, b: int, c: int):
    """Entry of the table at corner (a, b, c) of a cell (reference.entry_index)."""
    x = wp.uint32(wp.int32(cell[0]) + a)
    y = wp.uint32(wp.int32(cell[1]) + b) * level.stride_y
    z = wp.uint32(wp.int32(cell[2]) + c) * level.stride_z
    if level.dense:
        # The last vertices lie one beyond the grid: less than twice the size, so one subtraction is the remainder.
        index = x + y + z
        if index >= level.size:
            index = index - level.size
        return level.offset + wp.int32(index)
    # A hashed level's size is a power of two.
    return level.offset + wp.int32((x ^ y ^ z) & (level.size - wp.uint32(1)))


@wp.func
def axis_weight(fraction: wp.float32, upper: int):
    if upper == 1:
        return fraction
    return 1.0 - fraction


@wp.func
def axis_slope(upper: int):
    return wp.float32(2 * upper - 1)


@wp.func
def corner_weight(fraction: wp.vec3, v: wp.vec3, a: int, b: int, c: int):
    """Weight of corner (a, b, c)."""
    return axis_weight(fraction[0], a) * axis_weight(fraction[1], b) * axis_weight(fraction[2], c)


@wp.func
def corner_gradient(fraction: wp.vec3, v: wp.vec3, a: int, b: int, c: int):
    """Gradient of corner_weight in the fraction."""
    wx = axis_weight(fraction[0], a)
    wy = axis_weight(fraction[1], b)
    wz = axis_weight(fraction[2], c)
    return wp.vec3(axis_slope(a) * wy * wz, wx * axis_slope(b) * wz, wx * wy * axis_slope(c))


@wp.func
def corner_weight_along(fraction: wp.vec3, v: wp.vec3, a: int, b: int, c: int):
    """Derivative of corner_weight along v (in cells)."""
    return wp.dot(v, corner_gradient(fraction, v, a, b, c))


@wp.func
def corner_gradient_along(fraction: wp.vec3, v: wp.vec3, a: int, b: int, c: int):
    """Gradient of corner_weight_along in the fraction."""
    wx = axis_weight(fraction[0], a)
    wy = axis_weight(fraction[1], b)
    wz = axis_weight(fraction[2], c)
    sx = axis_slope(a)
    sy = axis_slope(b)
    sz = axis_slope(c)
    return wp.vec3(
        sx * (v[1] * sy * wz + v[2] * wy * sz),
        sy * (v[0] * sx * wz + v[2] * wx * sz),
        sz * (v[0] * sx * wy + v[1] * wx * sy),
    )


class HashGridKernels(NamedTuple):
    features: Any
    scatter: Any
    positions: Any
    entry_type: Any


@lru_cache(maxsize=None)
def hash_grid_kernels(n_features: int, directional: bool) -> HashGridKernels:
    """The kernels for entries of n_features; directional: with w_c's derivative along v in place of w_c.

    A thread takes up to ``chunk`` points on one level: many on a CPU, one on CUDA.
    """
    entry_type = wp.types.vector(length=n_features, dtype=wp.float32)
    weight_of = corner_weight_along if directional else corner_weight
    gradient_of = corner_gradient_along if directional else corner_gradient

    @wp.kernel(enable_backward=False, module="unique")
    def features_kernel(
        positions: wp.array(dtype=wp.vec3),
        directions: wp.array(dtype=wp.vec3),
        scales: wp.array(dtype=wp.float32),
        shape: wp.array2d(dtype=wp.int32),  # resolution, offset, size, dense of each level
        first_level: int,
        first_point: int,
        last_point: int,
        chunk: int,
        table: wp.array(dtype=entry_type),
        features: wp.array2d(dtype=entry_type),  # [L, N]
    ):
        i, j = wp.tid()
        index = first_level + i
        level = level_at(scales, shape, index)
        begin = first_point + j * chunk
        for n in range(begin, wp.min(begin + chunk, last_point)):
            scaled = positions[n] * level.scale + wp.vec3(0.5, 0.5, 0.5)
            cell = cell_of(scaled)
            v = directions[n] * level.scale
            total = entry_type()
            for corner in range(8):
                a = corner & 1
                b = (corner >> 1) & 1
                c = corner >> 2
                total += weight_of(scaled - cell, v, a, b, c) * table[entry_of(level, cell, a, b, c)]
            features[index, n] = total

    @wp.kernel(enable_backward=False, module="unique")
    def scatter_kernel(
        positions: wp.array(dtype=wp.vec3),
        directions: wp.array(dtype=wp.vec3),
        scales: wp.array(dtype=wp.float32),
        shape: wp.array2d(dtype=wp.int32),
        first_level: int,
        first_point: int,
        last_point: int,
        chunk: int,
        grad_features: wp.array2d(dtype=entry_type),  # [L, N]
        grad_table: wp.array(dtype=entry_type),
    ):
        i, j = wp.tid()
        index = first_level + i
        level = level_at(scales, shape, index)
        begin = first_point + j * chunk
        for n in range(begin, wp.min(begin + chunk, last_point)):
            scaled = positions[n] * level.scale + wp.vec3(0.5, 0.5, 0.5)
            cell = cell_of(scaled)
            v = directions[n] * level.scale
            grad = grad_features[index, n]
            for corner in range(8):
                a = corner & 1
                b = (corner >> 1) & 1
                c = corner >> 2
                wp.atomic_add(grad_table, entry_of(level, cell, a, b, c), weight_of(scaled - cell, v, a, b, c) * grad)

    @wp.kernel(enable_backward=False, module="unique")
    def positions_kernel(
        positions: wp.array(dtype=wp.vec3),
        directions: wp.array(dtype=wp.vec3),
        scales: wp.array(dtype=wp.float32),
        shape: wp.array2d(dtype=wp.int32),
        first_level: int,
        first_point: int,
        last_point: int,
        chunk: int,
        grad_features: wp.array2d(dtype=entry_type),  # [L, N]
        table: wp.array(dtype=entry_type),
        grad_positions: wp.array(dtype=wp.vec3),
    ):
        i, j = wp.tid()
        index = first_level + i
        level = level_at(scales, shape, index)
        begin = first_point + j * chunk
        for n in range(begin, wp.min(begin + chunk, last_point)):
            scaled = positions[n] * level.scale + wp.vec3(0.5, 0.5, 0.5)
            cell = cell_of(scaled)
            v = directions[n] * level.scale
            grad = grad_features[index, n]
            total = wp.vec3(0.0, 0.0, 0.0)
            for corner in range(8):
                a = corner & 1
                b = (corner >> 1) & 1
                c = corner >> 2
                inner = wp.dot(grad, table[entry_of(level, cell, a, b, c)])
                total += inner * gradient_of(scaled - cell, v, a, b, c)
            wp.atomic_add(grad_positions, n, total * level.scale)

    return HashGridKernels(features_kernel, scatter_kernel, positions_kernel, entry_type)
