"""Which Gaussians each tile of the images has, front to back, as Warp kernels: one source for CPU and CUDA.

Gaussians are sorted by depth, then listed for every tile that their box touches (Kerbl et al. 2023, section 6); sorting
the list by tile, with a sort that is stable, leaves every tile's part in order of depth.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from threestudio.ops.gaussian_rasterization.projection import ProjectedGaussians
from threestudio.ops.warp_runtime import as_array, launch, wp

CPU_TILE = 32  # pixels
CUDA_TILE = 16  # pixels
MOST_ENTRIES = 2**30  # of all tiles' lists; their index is an int32, and so is twice that


@wp.func
def tiles_touched(mean: wp.vec2, half: wp.vec2, tile: int, n_x: int, n_y: int):
    """First and one past the last tile in x and y of a box. Clamped as floats: a box may be larger than an integer."""
    size = wp.float32(tile)
    x0 = wp.int32(wp.clamp(wp.floor((mean[0] - half[0]) / size), 0.0, wp.float32(n_x)))
    x1 = wp.int32(wp.clamp(wp.floor((mean[0] + half[0]) / size) + 1.0, 0.0, wp.float32(n_x)))
    y0 = wp.int32(wp.clamp(wp.floor((mean[1] - half[1]) / size), 0.0, wp.float32(n_y)))
    y1 = wp.int32(wp.clamp(wp.floor((mean[1] + half[1]) / size) + 1.0, 0.0, wp.float32(n_y)))
    return wp.vec4i(x0, x1, y0, y1)


@wp.kernel(enable_backward=False)
def count_tiles_kernel(
    order: wp.array(dtype=wp.int32),  # view * n_gaussians + Gaussian of each rank in depth
    means2d: wp.array2d(dtype=wp.vec2),
    half_sizes: wp.array2d(dtype=wp.vec2),
    visible: wp.array2d(dtype=wp.bool),
    tile: int,
    n_tiles: wp.vec2i,
    counts: wp.array(dtype=wp.int32),  # by rank
):
    rank = wp.tid()
    view = order[rank] / means2d.shape[1]
    n = order[rank] % means2d.shape[1]
    if visible[view, n]:
        box = tiles_touched(means2d[view, n], half_sizes[view, n], tile, n_tiles[0], n_tiles[1])
        counts[rank] = (box[1] - box[0]) * (box[3] - box[2])


@wp.kernel(enable_backward=False)
def list_tiles_kernel(
    order: wp.array(dtype=wp.int32),  # view * n_gaussians + Gaussian of each rank in depth
    means2d: wp.array2d(dtype=wp.vec2),
    half_sizes: wp.array2d(dtype=wp.vec2),
    visible: wp.array2d(dtype=wp.bool),
    tile: int,
    n_tiles: wp.vec2i,
    ends: wp.array(dtype=wp.int64),  # by rank: one past its last entry
    tile_keys: wp.array(dtype=wp.int32),
    gaussians: wp.array(dtype=wp.int32),
):
    rank = wp.tid()
    view = order[rank] / means2d.shape[1]
    n = order[rank] % means2d.shape[1]
    if visible[view, n]:
        box = tiles_touched(means2d[view, n], half_sizes[view, n], tile, n_tiles[0], n_tiles[1])
        entry = wp.int32(ends[rank]) - (box[1] - box[0]) * (box[3] - box[2])
        for y in range(box[2], box[3]):
            for x in range(box[0], box[1]):
                tile_keys[entry] = (view * n_tiles[1] + y) * n_tiles[0] + x
                gaussians[entry] = n
                entry += 1


class TileLists(NamedTuple):
    """Which Gaussians each tile has, front to back."""

    starts: Tensor  # [tiles of all views + 1] int64
    gaussians: Tensor  # [entries] int32
    tile: int  # pixels
    cell: int  # pixels
    n_tiles: tuple[int, int]  # in x, in y


def list_tiles(projected: ProjectedGaussians, means2d: Tensor, height: int, width: int) -> TileLists:
    device = means2d.device
    tile, cell = (CUDA_TILE, 1) if device.type == "cuda" else (CPU_TILE, CPU_TILE)
    n_tiles = (-(-width // tile), -(-height // tile))
    n_tiles_of_all = means2d.shape[0] * n_tiles[0] * n_tiles[1]
    order = _sorted_by(projected.depths.detach().flatten(), torch.arange(projected.depths.numel(), device=device))
    boxes = [order, means2d, projected.half_sizes, projected.visible, tile, wp.vec2i(*n_tiles)]
    counts = torch.zeros(order.shape, dtype=torch.int32, device=device)
    launch(count_tiles_kernel, [order.numel()], [*boxes, counts], device)
    ends = counts.cumsum(0)
    n_entries = int(ends[-1]) if ends.numel() else 0
    if n_entries > MOST_ENTRIES:
        raise ValueError(
            f"rasterize_gaussians: the Gaussians cover {n_entries} tiles in all, more than {MOST_ENTRIES} (scales?)"
        )
    keys = torch.empty(n_entries, dtype=torch.int32, device=device)
    gaussians = torch.empty(n_entries, dtype=torch.int32, device=device)
    launch(list_tiles_kernel, [order.numel()], [*boxes, ends, keys, gaussians], device)
    gaussians = _sorted_by(keys, gaussians, n_tiles_of_all.bit_length())
    starts = torch.zeros(n_tiles_of_all + 1, dtype=torch.int64, device=device)
    # Not bincount, which looks for the largest key, and waits for it.
    starts[1:] = starts[1:].scatter_add(0, keys.long(), torch.ones_like(keys, dtype=torch.int64)).cumsum(0)
    return TileLists(starts, gaussians, tile, cell, n_tiles)


def _sorted_by(keys: Tensor, values: Tensor, n_bits: int = 32) -> Tensor:
    """The values [n] as int32 in ascending order of keys [n] (int32 or float32); equal keys keep their order."""
    n = keys.shape[0]
    if n == 0:
        return values.int()
    # Twice the memory: radix_sort_pairs works in the second half.
    all_keys, all_values = torch.cat([keys, keys]), torch.cat([values, values]).int()
    with wp.ScopedStream(wp.stream_from_torch(keys.device) if keys.device.type == "cuda" else None):
        wp.utils.radix_sort_pairs(as_array(all_keys), as_array(all_values), n, end_bit=n_bits)
    return all_values[:n]
