"""Triangles in texture space to texels: what a texture bake needs, with no graphics context."""

from __future__ import annotations

import torch
from torch import Tensor

TEXELS_AT_ONCE = 2**22  # bounds the memory of a bake


def rasterize_uv(v_tex: Tensor, t_tex_idx: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Which triangle covers the centre of each texel, and where.

    Args:
        v_tex: texture coordinates [Nt, 2] in [0, 1], u to the right, v down; t_tex_idx: [Nf, 3].
    Returns:
        face [H, W], -1 where there is none (of several, the last), and barycentric coordinates [H, W, 3].
    """
    size = v_tex.new_tensor([width, height])
    corners = (v_tex * size - 0.5)[t_tex_idx]  # [Nf, 3, 2], texel (i, j) has its centre at (i, j)
    low = corners.amin(1).ceil().long().clamp(min=0)
    high = torch.minimum(corners.amax(1).floor().long(), size.long() - 1)
    extent = (high - low + 1).clamp(min=0)  # [Nf, 2]
    count = extent.prod(-1)

    winner = torch.full((height * width,), -1, dtype=torch.long, device=v_tex.device)
    for part in _parts(count):
        texel, face = _texels_inside(corners, low, extent, count, part, width)
        winner = winner.scatter_reduce(0, texel, face, "amax")
    covered = (winner >= 0).nonzero()[:, 0]
    barycentric = v_tex.new_zeros(height * width, 3)
    centre = torch.stack([covered % width, covered // width], -1).to(v_tex)
    barycentric[covered] = _barycentric(corners[winner[covered]], centre)
    return winner.view(height, width), barycentric.view(height, width, 3)


def _parts(count: Tensor) -> tuple[Tensor, ...]:
    """Ranges of triangle indices whose bounding boxes have about TEXELS_AT_ONCE texels together, at least one each."""
    group = (count.cumsum(0) - 1).clamp(min=0) // TEXELS_AT_ONCE
    sizes = group.unique_consecutive(return_counts=True)[1].tolist()
    return torch.arange(count.shape[0], device=count.device).split(sizes)


def _texels_inside(
    corners: Tensor, low: Tensor, extent: Tensor, count: Tensor, part: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """Texel and triangle index of each pair of the triangles `part` where the triangle covers the texel's centre."""
    # Every texel of every triangle's bounding box, packed.
    count = count[part]
    face = torch.repeat_interleave(part, count)
    local = torch.arange(face.shape[0], device=face.device) - torch.repeat_interleave(count.cumsum(0) - count, count)
    x = low[face, 0] + local % extent[face, 0]
    y = low[face, 1] + local // extent[face, 0]
    inside = (_barycentric(corners[face], torch.stack([x, y], -1).to(corners)) >= -1e-5).all(-1)
    return (y * width + x)[inside], face[inside]


def _barycentric(corners: Tensor, points: Tensor) -> Tensor:
    """corners [M, 3, 2], points [M, 2] -> [M, 3]; -1 where the triangle has no area."""
    a, b, c = corners.unbind(1)
    area = _cross(b - a, c - a)
    pa, pb, pc = a - points, b - points, c - points
    weights = torch.stack([_cross(pb, pc), _cross(pc, pa), _cross(pa, pb)], -1)
    flat = (area.abs() < 1e-12)[:, None]
    safe = torch.where(flat, torch.ones_like(weights), area[:, None])
    return torch.where(flat, -torch.ones_like(weights), weights / safe)


def _cross(p: Tensor, q: Tensor) -> Tensor:
    return p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]


def fill_nearest(image: Tensor, known: Tensor) -> Tensor:
    """Gives every unknown texel its nearest known one's value, so that filtering across seams stays clean.

    image [H, W, C], known [H, W] bool -> [H, W, C].
    """
    from scipy.ndimage import distance_transform_edt

    if not known.any() or known.all():
        return image
    rows, columns = distance_transform_edt(~known.cpu().numpy(), return_distances=False, return_indices=True)
    index = torch.from_numpy(rows).long() * image.shape[1] + torch.from_numpy(columns).long()
    return image.reshape(-1, image.shape[-1])[index.to(image.device)]
