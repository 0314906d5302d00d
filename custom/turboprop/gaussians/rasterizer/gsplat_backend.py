"""Compositing by gsplat's CUDA kernels, where a user has that library; projection and culling stay our own.

gsplat >= 1.5 has the constants of this package (alpha from 1/255 to 0.99, transmittance down to 1e-4) and takes a box
with its own width and height per Gaussian, so the images agree to rounding.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util

import torch
from torch import Tensor

from .projection import ProjectedGaussians

TILE = 16  # pixels
OLDEST = (1, 5)


def gsplat_is_usable(device: torch.device) -> bool:
    """Installed, new enough, and asked for CUDA, the only place where it runs."""
    if device.type != "cuda" or importlib.util.find_spec("gsplat") is None:
        return False
    version = importlib.metadata.version("gsplat").split(".")
    return tuple(int(part) for part in version[:2]) >= OLDEST


def composite_gaussians_gsplat(
    projected: ProjectedGaussians,
    means2d: Tensor,  # [B, N, 2] pixels
    opacities: Tensor,  # [N]
    colors: Tensor,  # [N, C] or [B, N, C]
    height: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """``composite_gaussians`` in float32 on CUDA."""
    from gsplat import isect_offset_encode, isect_tiles, rasterize_to_pixels

    n_views, n = means2d.shape[:2]
    if n == 0:
        empty = colors.new_zeros(n_views, height, width, colors.shape[-1] + 2)
        return empty[..., :-2], empty[..., -2:-1], empty[..., -1:]
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    # Whole pixels, no larger than what an image can show: gsplat's radii are int32.
    reach = projected.half_sizes.ceil().clamp(max=2.0**20).int()
    _, keys, ids = isect_tiles(means2d, reach, projected.depths, TILE, tiles_x, tiles_y)
    offsets = isect_offset_encode(keys, n_views, tiles_x, tiles_y)
    values = torch.cat([colors.expand(n_views, n, -1), projected.depths[..., None]], -1)
    sums, opacity = rasterize_to_pixels(
        means2d, projected.conics, values, opacities.expand(n_views, n), width, height, TILE, offsets, ids
    )
    return sums[..., :-1], opacity, sums[..., -1:]
