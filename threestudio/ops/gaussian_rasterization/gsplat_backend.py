"""Compositing by gsplat's CUDA kernels, where a user has that library; projection and culling stay our own.

gsplat >= 1.5 has the constants of this op (alpha from 1/255, transmittance down to 1e-4) and takes a box with its
own width and height per Gaussian. Alpha's upper bound differs by version: 0.99 as here, or 0.999 (1.5.3). With the
latter, images differ where a Gaussian's own opacity is above 0.99, near its middle, by at most 0.009 in its alpha;
elsewhere they agree to rounding. Both bounds are known here, any other result is a disagreement (ops/agreement.py).
"""

from __future__ import annotations

import importlib.metadata

import torch
from torch import Tensor

import threestudio
from threestudio.ops.agreement import agrees, values_and_gradients, wave
from threestudio.ops.gaussian_rasterization.compositing import composite_pixels
from threestudio.ops.gaussian_rasterization.projection import ALPHA_MAX, ProjectedGaussians

TILE = 16  # pixels
OLDEST = (1, 5)
GSPLAT_ALPHA_MAX = (ALPHA_MAX, 0.999)  # of its versions


def gsplat_is_new_enough() -> bool:
    """Whether the installed gsplat takes a box with its own width and height; only later versions do."""
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


def gsplat_agrees(device: torch.device) -> bool:
    """Whether gsplat has run a small image in this process and made ours of it, at one of its bounds of alpha."""
    return agrees("gsplat", device, lambda: _compared(device))


def _compared(device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """An image of 16 x 16 pixels of eight Gaussians, the first of them opaque in the middle of a pixel."""
    n, size = 8, 16
    means2d = 3 + 10 * wave(1, n, 2, device=device, frequency=2.1)
    means2d[0, 0] = 8.5
    conics = torch.tensor([0.3, 0.05, 0.2], device=device).repeat(1, n, 1)
    depths = torch.linspace(1, 2, n, device=device)[None]
    opacities = 0.1 + 0.8 * wave(n, device=device)
    opacities[0] = 1.0
    reach = torch.full((1, n, 2), 2.0 * size, device=device)  # every Gaussian at every pixel
    visible = torch.ones(1, n, dtype=torch.bool, device=device)
    y, x = (a.reshape(-1) + 0.5 for a in torch.meshgrid(*[torch.arange(size, device=device)] * 2, indexing="ij"))

    def theirs(means2d: Tensor, conics: Tensor, opacities: Tensor, colors: Tensor) -> list[Tensor]:
        projected = ProjectedGaussians(
            means2d=means2d, depths=depths, conics=conics, half_sizes=reach, radii=reach[..., 0], visible=visible
        )
        image = composite_gaussians_gsplat(projected, means2d, opacities, colors, size, size)
        return [part.reshape(size * size, -1) for part in image]

    def ours(alpha_max: float) -> list[Tensor]:
        def function(means2d: Tensor, conics: Tensor, opacities: Tensor, colors: Tensor) -> list[Tensor]:
            values = torch.cat([colors, depths[0, :, None]], -1)
            sums, opacity = composite_pixels(x, y, means2d[0], conics[0], opacities, values, alpha_max)
            return [sums[:, :-1], opacity[:, None], sums[:, -1:]]

        return values_and_gradients(function, *inputs)

    inputs = (means2d, conics, opacities, wave(n, 3, device=device, frequency=0.4))
    got = values_and_gradients(theirs, *inputs)
    candidates = {bound: ours(bound) for bound in GSPLAT_ALPHA_MAX}
    bound = min(candidates, key=lambda k: (candidates[k][0] - got[0]).abs().max().item())
    if bound != ALPHA_MAX:
        threestudio.info(f"gsplat bounds alpha at {bound}, threestudio's own kernels at {ALPHA_MAX}")
    return list(zip(got, candidates[bound]))
