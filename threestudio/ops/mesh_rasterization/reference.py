"""Mesh rasterization in plain torch, any floating type.

Visibility is a depth buffer over the pixels of each triangle's bounding box.
"""

from __future__ import annotations

import torch
from torch import Tensor

NO_FACE = -1
# A face seen so nearly from its edge that float32 rounding moves its corners by a tenth of its width: where a pixel
# lies on it cannot be told, so its weights are clamped and carry no gradient. In units of length times clip w.
EDGE_ON = 5e-7
PACKED_CHUNK = 2**21  # pairs of face and pixel that are tested at once


def clip_positions(v_pos: Tensor, mvp: Tensor) -> Tensor:
    """v_pos [V, 3], mvp [B, 4, 4] -> clip space [B, V, 4], in v_pos' type also where autocast would make it half."""
    mvp = mvp.to(v_pos)
    with torch.autocast(v_pos.device.type, enabled=False):
        return v_pos @ mvp[:, :, :3].transpose(1, 2) + mvp[:, None, :, 3]


def visible_faces_torch(v_clip: Tensor, t_pos_idx: Tensor, height: int, width: int) -> Tensor:
    """v_clip [B, V, 4], t_pos_idx [F, 3] -> the nearest face behind each pixel's centre [B, H, W] int64 or NO_FACE."""
    return torch.stack([_depth_buffer(corners, height, width) for corners in v_clip[:, t_pos_idx]])


def _depth_buffer(corners: Tensor, height: int, width: int) -> Tensor:
    """The nearest face of each pixel [H, W], the first of several as near. corners: clip space [F, 3, 4]."""
    low, extent = _pixel_boxes(corners, height, width)
    count = extent.prod(-1)
    ends = count.cumsum(0)
    depth = corners.new_full((height * width,), float("inf"))
    winner = torch.full((height * width,), NO_FACE, dtype=torch.long, device=corners.device)
    start = 0
    while start < count.shape[0]:  # at least one face a round
        before = int(ends[start - 1]) if start > 0 else 0
        stop = max(start + 1, int(torch.searchsorted(ends, before + PACKED_CHUNK, right=True)))
        face = torch.repeat_interleave(torch.arange(start, stop, device=corners.device), count[start:stop])
        local = torch.arange(face.shape[0], device=corners.device) - (ends - count)[face] + before
        x = low[face, 0] + local % extent[face, 0]
        y = low[face, 1] + local // extent[face, 0]
        z = _depth_at(corners[face], pixel_centre(x, width, corners), pixel_centre(y, height, corners))
        hit = z.isfinite()
        pixel, z, face = (y * width + x)[hit], z[hit], face[hit]
        nearest = depth.scatter_reduce(0, pixel, z, "amin")
        first = torch.full_like(winner, corners.shape[0])
        best = z == nearest[pixel]
        first = first.scatter_reduce(0, pixel[best], face[best], "amin")
        winner = torch.where(nearest < depth, first, winner)
        depth = nearest
        start = stop
    return winner.view(height, width)


def pixel_centre(index: Tensor, size: int, like: Tensor) -> Tensor:
    """Normalized device coordinate of the centre of pixels."""
    return (index.to(like) + 0.5) * (2.0 / size) - 1.0


def _pixel_boxes(corners: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """First pixel (x, y) and number of pixels of each face's bounding box, both [F, 2]; 0 pixels out of view."""
    w = corners[..., 3]
    size = torch.tensor([width, height], device=corners.device)
    safe = torch.where(w > 1e-8, w, torch.ones_like(w))
    pixel = (corners[..., :2] / safe[..., None] + 1.0) * 0.5 * size - 0.5  # [F, 3, 2]
    before = (w > 1e-8).all(-1, keepdim=True)  # wholly in front of the camera; else anywhere on the screen
    low = torch.where(before, pixel.amin(1), torch.zeros_like(pixel[:, 0])).clamp(min=-1.0)
    high = torch.where(before, pixel.amax(1), size.to(pixel).expand(len(pixel), 2)).clamp(min=-2.0)
    low = torch.minimum(low.floor(), size.to(low)).long().clamp(min=0)
    high = torch.minimum(high.ceil(), size.to(high) - 1).long()
    extent = (high - low + 1).clamp(min=0)
    # All corners outside the same plane of the frustum.
    outside = (corners[..., :3] > w[..., None]).all(1).any(-1) | (corners[..., :3] < -w[..., None]).all(1).any(-1)
    return low, torch.where(outside[:, None], torch.zeros_like(extent), extent)


def _edge_functions(corners: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Twice the areas that a pixel's centre spans with each edge, the one opposite corner i at i; [M, 3].

    The plane through the camera and the pixel's column is x_clip - x w = 0, that through its row y_clip - y w = 0;
    the weights of the point where both meet the face are as these areas. corners [M, 3, 4]; x, y [M].
    """
    u = corners[..., 0] - x[:, None] * corners[..., 3]
    v = corners[..., 1] - y[:, None] * corners[..., 3]
    u1, u2, v1, v2 = (p.roll(-k, -1) for p in (u, v) for k in (1, 2))
    return u1 * v2 - u2 * v1


def _depth_at(corners: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """z / w of faces [M, 3, 4] at (x, y) [M], infinite where the face is not there or out of the frustum."""
    areas = _edge_functions(corners, x, y)
    total = areas.sum(-1)
    inside = ((areas * total.sign()[:, None]) >= 0).all(-1) & (total != 0)
    weights = areas / torch.where(total != 0, total, torch.ones_like(total))[:, None]
    z, w = (weights * corners[..., 2]).sum(-1), (weights * corners[..., 3]).sum(-1)
    inside = inside & (w > 0) & (z.abs() <= w)
    return torch.where(inside, z / torch.where(w > 0, w, torch.ones_like(w)), torch.full_like(z, float("inf")))


def barycentric_torch(face: Tensor, v_clip: Tensor, t_pos_idx: Tensor) -> Tensor:
    """face [B, H, W], v_clip [B, V, 4], t_pos_idx [F, 3] -> weights of the corners [B, H, W, 3]."""
    batch, height, width = face.shape
    covered = (face.reshape(-1) >= 0).nonzero()[:, 0]
    view = covered // (height * width)
    row = (view * v_clip.shape[1])[:, None] + t_pos_idx[face.reshape(-1)[covered]]
    corners = v_clip.reshape(-1, 4).index_select(0, row.reshape(-1)).view(-1, 3, 4)
    x = pixel_centre(covered % width, width, v_clip)
    y = pixel_centre(covered // width % height, height, v_clip)
    areas = _edge_functions(corners, x, y)
    total = areas.sum(-1, keepdim=True)
    edge_on = total.abs() <= EDGE_ON * _longest_edge(corners.detach(), x, y)[:, None]
    weights = areas / torch.where(total == 0, torch.ones_like(total), total)
    weights = torch.where(edge_on, weights.detach(), weights)
    # Rounding may put a ray that hits the face just beside it: the value is held inside, the gradient is as it was.
    held = weights.detach().clamp(0.0, 1.0)
    held = torch.where(held.sum(-1, keepdim=True) > 0, held, torch.ones_like(held))
    weights = weights + (held / held.sum(-1, keepdim=True) - weights.detach())
    out = v_clip.new_zeros(batch * height * width, 3).index_copy(0, covered, weights)
    return out.view(batch, height, width, 3)


def _longest_edge(corners: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Longest edge, as seen from the pixel, times the largest clip w [M]. corners [M, 3, 4]; x, y [M]."""
    w = corners[..., 3]
    seen = torch.stack([corners[..., 0] - x[:, None] * w, corners[..., 1] - y[:, None] * w], -1)
    return (seen - seen.roll(1, 1)).norm(dim=-1).amax(-1) * w.abs().amax(-1)


def interpolate_torch(attributes: Tensor, t_idx: Tensor, face: Tensor, barycentric: Tensor) -> Tensor:
    """attributes [B or 1, V, C], t_idx [F, 3], face [B, H, W], barycentric [B, H, W, 3] -> [B, H, W, C]."""
    covered = (face.reshape(-1) >= 0).nonzero()[:, 0]
    row = t_idx[face.reshape(-1)[covered]]
    if attributes.shape[0] > 1:
        row = row + (covered // face[0].numel() * attributes.shape[1])[:, None]
    channels = attributes.shape[-1]
    corners = attributes.reshape(-1, channels).index_select(0, row.reshape(-1)).view(-1, 3, channels)
    values = (corners * barycentric.reshape(-1, 3).index_select(0, covered)[..., None]).sum(1)
    return attributes.new_zeros(face.numel(), channels).index_copy(0, covered, values).view(*face.shape, channels)
