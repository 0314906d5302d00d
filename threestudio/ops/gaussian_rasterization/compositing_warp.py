"""compositing.py as Warp kernels with a backward by hand: one source for CPU and CUDA, float32.

A thread owns a cell of a tile: it walks along the tile's list (tile_lists.py) and, for each Gaussian, along the pixels
of its cell that lie in the ellipse. On CUDA a cell is one pixel. On a CPU, where threads come one after another, it is
the whole tile, so the work is the area of the ellipses rather than that of the tiles, and a Gaussian's gradients are
added up in registers. There sums have one order and come out the same bit for bit; on CUDA atomic additions have none.

Backward walks the list from the back. With v_i = <gradient at the pixel, values_i> the loss's derivative in the weight
alpha_i T_i, and behind_i = sum_{j > i} alpha_j T_j v_j:

    dL / dalpha_i = T_i v_i - behind_i / (1 - alpha_i)

T_i is had from T_{i+1} by division, so nothing is kept per pair of pixel and Gaussian.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from threestudio.ops.gaussian_rasterization.compositing import TRANSMITTANCE_MIN
from threestudio.ops.gaussian_rasterization.projection import ALPHA_MAX, ALPHA_MIN, ProjectedGaussians
from threestudio.ops.gaussian_rasterization.tile_lists import TileLists, list_tiles
from threestudio.ops.warp_runtime import launch, wp

LEAST_ALPHA = wp.constant(wp.float32(ALPHA_MIN))
MOST_ALPHA = wp.constant(wp.float32(ALPHA_MAX))
LEAST_TRANSMITTANCE = wp.constant(wp.float32(TRANSMITTANCE_MIN))
NARROW = wp.constant(wp.float32(8.0))  # pixels: boxes up to twice as wide are tried pixel by pixel
Q_SLACK = wp.constant(wp.float32(1.0e-3))  # far more than what rounds in log and exp: alpha decides, not q


@wp.func
def cell_bounds(cell_index: int, tile_index: int, tile: int, cell: int, n_tiles: wp.vec2i, size: wp.vec2i):
    """First and one past the last pixel in x and y of a cell, cut at the image's edge."""
    cells = tile / cell
    x0 = (tile_index % n_tiles[0]) * tile + (cell_index % cells) * cell
    y0 = (tile_index / n_tiles[0]) % n_tiles[1] * tile + (cell_index / cells) * cell
    return wp.vec4i(wp.min(x0, size[0]), wp.min(x0 + cell, size[0]), wp.min(y0, size[1]), wp.min(y0 + cell, size[1]))


@wp.func
def pixels_between(low: float, high: float, first: int, end: int):
    """First and one past the last pixel of first .. end whose centre lies in [low, high]."""
    start = wp.int32(wp.clamp(wp.ceil(low - 0.5), wp.float32(first), wp.float32(end)))
    stop = wp.int32(wp.clamp(wp.floor(high - 0.5) + 1.0, wp.float32(first), wp.float32(end)))
    return wp.vec2i(start, stop)


@wp.func
def row_span(mean: wp.vec2, conic: wp.vec3, half: wp.vec2, q_max: float, dy: float, box: wp.vec2i):
    """Pixels of a row, within the box's, where q can be at most q_max: a hair too many rather than one too few."""
    span = box
    if half[0] > NARROW:
        a = conic[0]
        bdy = conic[1] * dy
        cdy2 = conic[2] * dy * dy
        discriminant = bdy * bdy - a * (cdy2 - q_max) + 1.0e-6 * (bdy * bdy + a * cdy2)
        reach = wp.sqrt(wp.max(discriminant, 0.0)) / a + 0.01
        middle = mean[0] - bdy / a
        if wp.isfinite(reach) and wp.isfinite(middle):
            span = pixels_between(middle - reach, middle + reach, box[0], box[1])
    return span


@wp.kernel(enable_backward=False)
def composite_kernel(
    starts: wp.array(dtype=wp.int64),  # first entry of each tile, and their number
    gaussians: wp.array(dtype=wp.int32),  # entries
    means2d: wp.array2d(dtype=wp.vec2),
    conics: wp.array2d(dtype=wp.vec3),
    half_sizes: wp.array2d(dtype=wp.vec2),
    opacities: wp.array(dtype=wp.float32),
    values: wp.array3d(dtype=wp.vec4),  # view, Gaussian, group of four channels
    tile: int,
    cell: int,
    n_tiles: wp.vec2i,
    size: wp.vec2i,
    sums: wp.array2d(dtype=wp.vec4),  # pixel, group
    transmittance: wp.array(dtype=wp.float32),  # pixel; 1 at first, negative while a pixel has ended
    stops: wp.array(dtype=wp.int32),  # pixel: one past the last entry that counts
    cell_stops: wp.array2d(dtype=wp.int32),  # tile, cell: the largest of its pixels' stops
):
    tile_index, cell_index = wp.tid()
    view = tile_index / (n_tiles[0] * n_tiles[1])
    bounds = cell_bounds(cell_index, tile_index, tile, cell, n_tiles, size)
    first = wp.int32(starts[tile_index])
    end = wp.int32(starts[tile_index + 1])
    live = (bounds[1] - bounds[0]) * (bounds[3] - bounds[2])
    cell_stop = end
    for y in range(bounds[2], bounds[3]):
        for x in range(bounds[0], bounds[1]):
            stops[(view * size[1] + y) * size[0] + x] = end
    for entry in range(first, end):
        if live <= 0:
            cell_stop = entry
            break
        n = gaussians[entry]
        mean = means2d[view, n]
        conic = conics[view, n]
        half = half_sizes[view, n]
        opacity = opacities[n]
        q_max = 2.0 * wp.log(opacity / LEAST_ALPHA) + Q_SLACK
        value = values[view, n, 0]  # the first group, most often the only one, stays in registers
        box = pixels_between(mean[0] - half[0], mean[0] + half[0], bounds[0], bounds[1])
        rows = pixels_between(mean[1] - half[1], mean[1] + half[1], bounds[2], bounds[3])
        for y in range(rows[0], rows[1]):
            dy = wp.float32(y) + 0.5 - mean[1]
            span = row_span(mean, conic, half, q_max, dy, box)
            row = (view * size[1] + y) * size[0]
            for x in range(span[0], span[1]):
                t = transmittance[row + x]
                if t > 0.0:
                    dx = wp.float32(x) + 0.5 - mean[0]
                    q = conic[0] * dx * dx + 2.0 * conic[1] * dx * dy + conic[2] * dy * dy
                    alpha = float(0.0)
                    if q <= q_max:
                        alpha = opacity * wp.exp(-0.5 * q)
                    if alpha >= LEAST_ALPHA:
                        alpha = wp.min(alpha, MOST_ALPHA)
                        after = t * (1.0 - alpha)
                        if after < LEAST_TRANSMITTANCE:
                            transmittance[row + x] = -t
                            stops[row + x] = entry
                            live -= 1
                        else:
                            weight = alpha * t
                            transmittance[row + x] = after
                            sums[row + x, 0] = sums[row + x, 0] + weight * value
                            for group in range(1, values.shape[2]):
                                sums[row + x, group] = sums[row + x, group] + weight * values[view, n, group]
    cell_stops[tile_index, cell_index] = cell_stop


@wp.kernel(enable_backward=False)
def composite_backward_kernel(
    starts: wp.array(dtype=wp.int64),
    gaussians: wp.array(dtype=wp.int32),
    means2d: wp.array2d(dtype=wp.vec2),
    conics: wp.array2d(dtype=wp.vec3),
    half_sizes: wp.array2d(dtype=wp.vec2),
    opacities: wp.array(dtype=wp.float32),
    values: wp.array3d(dtype=wp.vec4),
    tile: int,
    cell: int,
    n_tiles: wp.vec2i,
    size: wp.vec2i,
    stops: wp.array(dtype=wp.int32),
    cell_stops: wp.array2d(dtype=wp.int32),
    grad_sums: wp.array2d(dtype=wp.vec4),
    grad_opacity: wp.array(dtype=wp.float32),  # pixel
    transmittance: wp.array(dtype=wp.float32),  # pixel: behind all at first, then before the entry at hand
    behind: wp.array(dtype=wp.float32),  # pixel: 0 at first
    grad_means2d: wp.array2d(dtype=wp.vec2),
    grad_conics: wp.array2d(dtype=wp.vec3),
    grad_opacities: wp.array(dtype=wp.float32),
    grad_values: wp.array3d(dtype=wp.vec4),
):
    tile_index, cell_index = wp.tid()
    view = tile_index / (n_tiles[0] * n_tiles[1])
    bounds = cell_bounds(cell_index, tile_index, tile, cell, n_tiles, size)
    first = wp.int32(starts[tile_index])
    end = cell_stops[tile_index, cell_index]
    for back in range(end - first):
        entry = end - 1 - back
        n = gaussians[entry]
        mean = means2d[view, n]
        conic = conics[view, n]
        half = half_sizes[view, n]
        opacity = opacities[n]
        q_max = 2.0 * wp.log(opacity / LEAST_ALPHA) + Q_SLACK
        value = values[view, n, 0]
        to_value = wp.vec4(0.0, 0.0, 0.0, 0.0)
        to_mean = wp.vec2(0.0, 0.0)
        to_conic = wp.vec3(0.0, 0.0, 0.0)
        to_opacity = float(0.0)
        touched = bool(False)
        box = pixels_between(mean[0] - half[0], mean[0] + half[0], bounds[0], bounds[1])
        rows = pixels_between(mean[1] - half[1], mean[1] + half[1], bounds[2], bounds[3])
        for y in range(rows[0], rows[1]):
            dy = wp.float32(y) + 0.5 - mean[1]
            span = row_span(mean, conic, half, q_max, dy, box)
            row = (view * size[1] + y) * size[0]
            for x in range(span[0], span[1]):
                if entry < stops[row + x]:
                    dx = wp.float32(x) + 0.5 - mean[0]
                    q = conic[0] * dx * dx + 2.0 * conic[1] * dx * dy + conic[2] * dy * dy
                    falloff = float(0.0)
                    if q <= q_max:
                        falloff = wp.exp(-0.5 * q)
                    uncut = opacity * falloff
                    if uncut >= LEAST_ALPHA:
                        alpha = wp.min(uncut, MOST_ALPHA)
                        inverse = 1.0 / (1.0 - alpha)
                        t = transmittance[row + x] * inverse
                        weight = alpha * t
                        first_g = grad_sums[row + x, 0]
                        v = grad_opacity[row + x] + wp.dot(first_g, value)
                        to_value += weight * first_g
                        touched = True
                        for group in range(1, values.shape[2]):
                            g = grad_sums[row + x, group]
                            v += wp.dot(g, values[view, n, group])
                            wp.atomic_add(grad_values, view, n, group, weight * g)
                        to_alpha = t * v - behind[row + x] * inverse
                        behind[row + x] = behind[row + x] + weight * v
                        transmittance[row + x] = t
                        if uncut <= MOST_ALPHA:
                            to_opacity += to_alpha * falloff
                            to_q = -0.5 * uncut * to_alpha
                            to_conic += to_q * wp.vec3(dx * dx, 2.0 * dx * dy, dy * dy)
                            slope = wp.vec2(conic[0] * dx + conic[1] * dy, conic[1] * dx + conic[2] * dy)
                            to_mean -= 2.0 * to_q * slope
        if touched:
            wp.atomic_add(grad_values, view, n, 0, to_value)
            wp.atomic_add(grad_means2d, view, n, to_mean)
            wp.atomic_add(grad_conics, view, n, to_conic)
            wp.atomic_add(grad_opacities, n, to_opacity)


def _inputs(lists: TileLists, tensors: tuple[Tensor, ...], height: int, width: int) -> list:
    return [
        lists.starts,
        lists.gaussians,
        *tensors,
        lists.tile,
        lists.cell,
        wp.vec2i(*lists.n_tiles),
        wp.vec2i(width, height),
    ]


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means2d: Tensor,
        conics: Tensor,
        opacities: Tensor,
        values: Tensor,
        half_sizes: Tensor,
        lists: TileLists,
        size: tuple,
    ) -> tuple[Tensor, Tensor]:
        """values [B, N, D / 4, 4] -> sums [B, H, W, D / 4, 4], opacity [B, H, W]."""
        height, width = size
        shape = (means2d.shape[0], height, width)
        sums, transmittance = values.new_zeros(*shape, *values.shape[2:]), values.new_ones(shape)
        stops = torch.empty(shape, dtype=torch.int32, device=values.device)
        dimensions = (lists.starts.shape[0] - 1, (lists.tile // lists.cell) ** 2)
        cell_stops = torch.empty(dimensions, dtype=torch.int32, device=values.device)
        tensors = (means2d, conics, half_sizes, opacities, values)
        inputs = _inputs(lists, tensors, height, width)
        outputs = [sums.flatten(0, 2), transmittance.view(-1), stops.view(-1), cell_stops]
        launch(composite_kernel, dimensions, [*inputs, *outputs], values.device)
        transmittance.abs_()
        ctx.save_for_backward(*tensors, transmittance, stops, cell_stops, lists.starts, lists.gaussians)
        ctx.tiling, ctx.size = lists[2:], size
        return sums, 1 - transmittance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_sums: Tensor, grad_opacity: Tensor) -> tuple:
        *tensors, transmittance, stops, cell_stops, starts, gaussians = ctx.saved_tensors
        means2d, conics, _, opacities, values = tensors
        grads = [
            torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (means2d, conics, opacities, values)
        ]
        work = [transmittance.clone().view(-1), torch.zeros_like(transmittance).view(-1)]
        inputs = _inputs(TileLists(starts, gaussians, *ctx.tiling), tuple(tensors), *ctx.size)
        given = [stops.view(-1), cell_stops, grad_sums.flatten(0, 2), grad_opacity.flatten()]
        launch(composite_backward_kernel, cell_stops.shape, [*inputs, *given, *work, *grads], values.device)
        return (*grads, None, None, None)


def composite_gaussians_warp(
    projected: ProjectedGaussians,
    means2d: Tensor,  # [B, N, 2] pixels
    opacities: Tensor,  # [N]
    colors: Tensor,  # [N, C] or [B, N, C]
    height: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """``composite_gaussians`` in float32. Channels travel in groups of four: rgb and depth are one."""
    n_channels = colors.shape[-1]
    colors = colors.expand(means2d.shape[0], *colors.shape[-2:])
    padding = colors.new_zeros(*colors.shape[:2], -(n_channels + 1) % 4)
    values = torch.cat([colors, projected.depths[..., None], padding], -1).unflatten(-1, (-1, 4))
    lists = list_tiles(projected, means2d, height, width)
    sums, opacity = _Composite.apply(
        means2d, projected.conics, opacities, values, projected.half_sizes, lists, (height, width)
    )
    sums = sums.flatten(-2)
    return sums[..., :n_channels], opacity[..., None], sums[..., n_channels : n_channels + 1]
