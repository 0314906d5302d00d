"""Marching through an occupancy grid as Warp kernels: the samples of reference.march_occupied_torch.

Bit for bit on a CPU; written to be so on CUDA too, where it has not been run.

Every sample that is looked at is judged by the reference's own arithmetic. From a sample in an empty cell the march
goes on at the last sample that is sure to lie in the same cell, so what is skipped could not have been kept. The
kernels run twice: to count each ray's samples, and to write them where the counts before say.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from threestudio.ops.ray_sampling import RaySamples
from threestudio.ops.warp_runtime import as_array, launch_parts, shares, wp

# Fused multiply-adds would round otherwise than torch does, and a sample on a cell's border change sides.
wp.set_module_options({"fuse_fp": False})


@wp.func
def axis_cell(x: wp.float32, low: wp.float32, high: wp.float32, resolution: int):
    """Index of the cell along one axis (ray_sampling.cell_of); NaN counts to cell 0."""
    along = (x - low) / (high - low) * wp.float32(resolution)
    if along >= wp.float32(resolution - 1):
        return resolution - 1
    if along > 0.0:
        return wp.int32(along)
    return 0


@wp.func
def axis_exit(origin: wp.float32, direction: wp.float32, cell: int, low: wp.float32, high: wp.float32, resolution: int):
    """Distance at which a ray leaves a cell along one axis."""
    if wp.abs(direction) < 1e-12:
        return wp.float32(wp.inf)
    border = cell
    if direction > 0.0:
        border = cell + 1
    return (low + (high - low) * (wp.float32(border) / wp.float32(resolution)) - origin) / direction


@wp.kernel(enable_backward=False)
def march_kernel(
    rays_o: wp.array(dtype=wp.vec3),
    rays_d: wp.array(dtype=wp.vec3),
    t_min: wp.array(dtype=wp.float32),
    n_steps: wp.array(dtype=wp.int32),
    step: wp.float32,
    half_step: wp.float32,
    occupied: wp.array(dtype=wp.bool),  # [R * R * R]
    box: wp.array(dtype=wp.vec3),  # lower and upper corner
    resolution: int,
    first_ray: int,
    write: wp.bool,
    counts: wp.array(dtype=wp.int32),  # without write: set
    offsets: wp.array(dtype=wp.int64),  # with write: each ray's first sample
    ray_indices: wp.array(dtype=wp.int64),
    t_starts: wp.array(dtype=wp.float32),
    t_ends: wp.array(dtype=wp.float32),
):
    ray = first_ray + wp.tid()
    o = rays_o[ray]
    d = rays_d[ray]
    low = box[0]
    high = box[1]
    start = t_min[ray]
    steps = n_steps[ray]
    count = int(0)
    next_sample = wp.int32(0)
    if write:
        next_sample = wp.int32(offsets[ray])
    k = int(0)
    while k < steps:
        t = start + wp.float32(k) * step
        middle = o + d * (t + half_step)
        x = axis_cell(middle[0], low[0], high[0], resolution)
        y = axis_cell(middle[1], low[1], high[1], resolution)
        z = axis_cell(middle[2], low[2], high[2], resolution)
        if occupied[(x * resolution + y) * resolution + z]:
            if write:
                ray_indices[next_sample + count] = wp.int64(ray)
                t_starts[next_sample + count] = t
                t_ends[next_sample + count] = t + step
            count += 1
            k += 1
        else:
            t_exit = wp.min(
                axis_exit(o[0], d[0], x, low[0], high[0], resolution),
                wp.min(
                    axis_exit(o[1], d[1], y, low[1], high[1], resolution),
                    axis_exit(o[2], d[2], z, low[2], high[2], resolution),
                ),
            )
            # The last sample whose middle comes a whole step before the exit is in this cell whatever the rounding.
            ahead = wp.min((t_exit - start - half_step) / step, wp.float32(steps))
            k += 1
            if ahead > wp.float32(k):
                k = wp.int32(ahead)
    if not write:
        counts[ray] = count


def march_occupied_warp(
    rays_o: Tensor,
    rays_d: Tensor,
    t_min: Tensor,
    n_steps: Tensor,
    step: float,
    binaries: Tensor | None,
    bbox: Tensor,
    check: Callable[[int], None],
) -> RaySamples:
    """Arguments as those of reference.march_occupied_torch, float32; `check` is told the largest of n_steps.

    It is asked once the samples are counted: both numbers come from the device together.
    """
    device, n_rays = rays_o.device, rays_o.shape[0]
    if binaries is None:
        binaries = torch.ones(1, 1, 1, dtype=torch.bool, device=device)
    counts = torch.zeros(n_rays, dtype=torch.int32, device=device)
    place = [
        as_array(rays_o, wp.vec3),
        as_array(rays_d, wp.vec3),
        as_array(t_min),
        as_array(n_steps.int()),
        step,
        step / 2,
    ]
    place += [as_array(binaries.reshape(-1)), as_array(bbox.float(), wp.vec3), binaries.shape[0]]
    nothing = torch.zeros(1, dtype=torch.int64, device=device)
    _march(place, n_rays, [False, counts, nothing, nothing, t_min.new_zeros(1), t_min.new_zeros(1)], device)
    ends = counts.cumsum(0)  # int64
    n_samples, most = torch.stack([ends[-1], n_steps.max()]).tolist()
    check(most)
    if n_samples >= 2**31:
        raise ValueError(f"ray marching: {n_samples} samples are more than one call can hold, 2^31")
    ray_indices = torch.empty(n_samples, dtype=torch.int64, device=device)
    t_starts, t_ends = t_min.new_empty(2, n_samples)
    if n_samples > 0:
        _march(place, n_rays, [True, counts, ends - counts, ray_indices, t_starts, t_ends], device)
    return RaySamples(ray_indices, t_starts, t_ends)


def _march(place: list, n_rays: int, outputs: list, device: torch.device) -> None:
    arrays = [x if isinstance(x, bool) else as_array(x) for x in outputs]
    parts = [((last - first,), [*place, first, *arrays]) for first, last in shares(n_rays, device, work=32)]
    launch_parts(march_kernel, parts, device)
