"""From Gaussians on the image to pixels, in plain torch: front to back, alpha by alpha (Kerbl et al. 2023, eq. 3).

    alpha_i = min(ALPHA_MAX, opacity_i exp(-q_i / 2)), none where opacity_i exp(-q_i / 2) < ALPHA_MIN
    T_i     = prod_{j < i} (1 - alpha_j)
    color   = sum_i alpha_i T_i color_i,   opacity = sum_i alpha_i T_i,   depth = sum_i alpha_i T_i depth_i

A pixel ends before the first Gaussian that would bring T below TRANSMITTANCE_MIN; what was to come counts nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from threestudio.ops.gaussian_rasterization.projection import ALPHA_MAX, ALPHA_MIN, ProjectedGaussians

TRANSMITTANCE_MIN = 1e-4  # Kerbl et al. 2023, appendix C
TILE = 16  # pixels


def composite_pixels(
    x: Tensor,  # [P] pixels
    y: Tensor,  # [P] pixels
    means2d: Tensor,  # [K, 2] sorted front to back
    conics: Tensor,  # [K, 3]
    opacities: Tensor,  # [K]
    values: Tensor,  # [K, D]
    alpha_max: float = ALPHA_MAX,
) -> tuple[Tensor, Tensor]:
    """Sums [P, D] of the values, and opacity [P]: every Gaussian at every pixel."""
    dx, dy = x[:, None] - means2d[:, 0], y[:, None] - means2d[:, 1]
    q = conics[:, 0] * dx * dx + 2 * conics[:, 1] * dx * dy + conics[:, 2] * dy * dy
    alpha = opacities * torch.exp(-0.5 * q)
    alpha = torch.where(alpha >= ALPHA_MIN, alpha.clamp(max=alpha_max), 0.0)
    after = torch.cumprod(1 - alpha, -1)
    alpha = torch.where(after >= TRANSMITTANCE_MIN, alpha, 0.0)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], -1)
    weights = alpha * before
    return weights @ values, weights.sum(-1)


def _tiles(height: int, width: int, tile: int) -> Iterator[tuple[int, int, int, int]]:
    """Each tile's rows and columns: first, and one after the last."""
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            yield top, min(top + tile, height), left, min(left + tile, width)


def _composite_one(
    projected: ProjectedGaussians,
    view: int,
    means2d: Tensor,
    opacities: Tensor,
    values: Tensor,
    height: int,
    width: int,
    tile: int,
) -> tuple[Tensor, Tensor]:
    """[H, W, D] and [H, W] of one camera; only the Gaussians whose box touches a tile are asked in it."""
    order = torch.argsort(projected.depths[view].detach(), stable=True)
    order = order[projected.visible[view][order]]
    low = (means2d.detach() - projected.half_sizes[view])[order]
    high = (means2d.detach() + projected.half_sizes[view])[order]
    sums, opacity = values.new_zeros(height, width, values.shape[-1]), values.new_zeros(height, width)
    for top, bottom, left, right in _tiles(height, width, tile):
        touches = (low[:, 0] <= right) & (high[:, 0] >= left) & (low[:, 1] <= bottom) & (high[:, 1] >= top)
        chosen = order[touches]
        y, x = torch.meshgrid(
            torch.arange(top, bottom, dtype=values.dtype, device=values.device) + 0.5,
            torch.arange(left, right, dtype=values.dtype, device=values.device) + 0.5,
            indexing="ij",
        )
        s, o = composite_pixels(
            x.reshape(-1),
            y.reshape(-1),
            means2d[chosen],
            projected.conics[view][chosen],
            opacities[chosen],
            values[chosen],
        )
        sums[top:bottom, left:right] = s.view(*x.shape, -1)
        opacity[top:bottom, left:right] = o.view(x.shape)
    return sums, opacity


def composite_gaussians(
    projected: ProjectedGaussians,
    means2d: Tensor,  # [B, N, 2] pixels; in place of projected.means2d, so that a caller can ask for its gradient
    opacities: Tensor,  # [N]
    colors: Tensor,  # [N, C] or [B, N, C]
    height: int,
    width: int,
    tile: int = TILE,  # pixels; the image does not depend on it
) -> tuple[Tensor, Tensor, Tensor]:
    """color [B, H, W, C] without a background, opacity [B, H, W, 1], depth [B, H, W, 1]."""
    images = []
    for view in range(means2d.shape[0]):
        view_colors = colors[view] if colors.dim() == 3 else colors
        values = torch.cat([view_colors, projected.depths[view][:, None]], -1)
        images.append(_composite_one(projected, view, means2d[view], opacities, values, height, width, tile))
    sums, opacity = torch.stack([s for s, _ in images]), torch.stack([o for _, o in images])
    return sums[..., :-1], opacity[..., None], sums[..., -1:]
