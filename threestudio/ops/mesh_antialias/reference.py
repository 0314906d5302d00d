"""Finding a mesh's outlines between pixels in plain torch, any floating type."""

from __future__ import annotations

import torch
from torch import Tensor

from threestudio.ops.mesh_antialias.edges import Edges, crossing, edge_lines, pair_weights
from threestudio.ops.mesh_rasterization.reference import pixel_centre

NO_EDGE = 2**63 - 1
EDGE_BITS = 32
# Pairs are left out that an edge blends by less than this share of a pixel: their gradient would be a small number
# times a large one.
LEAST_WEIGHT = 1e-4
# Nearest w at which the screen range of an edge is measured, where it reaches behind the camera.
LEAST_W = 1e-6


def outline_pairs_torch(v_clip: Tensor, t_pos_idx: Tensor, edges: Edges, face: Tensor, depth: Tensor) -> Tensor:
    """The outermost outline edge between each pixel and the next.

    Args:
        v_clip: [B, V, 4]; t_pos_idx: [F, 3]; face, depth: [B, H, W].
    Returns:
        [2, B, H, W] int64: in a row and in a column; NO_EDGE, or from high bits to low: the crossing's distance from
        the pixel that does not see the edge's surface (float32), the edge, and whether the next pixel sees it.
    """
    winner = face.new_full((2, *face.shape), NO_EDGE)
    for view in range(face.shape[0]):
        edge, side = _outline(v_clip[view], t_pos_idx, edges)
        for axis in (0, 1):
            key, pixel = _outline_crossings(v_clip[view], edges, edge, side, axis, face[view], depth[view])
            winner[axis, view] = winner[axis, view].view(-1).scatter_reduce(0, pixel, key, "amin").view(face.shape[1:])
    return winner


def _outline(clip: Tensor, t_pos_idx: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
    """Edges all of whose faces lie on one side of them, and which: the sign of the edge's line there. clip [V, 4]."""
    p, q, r = clip[:, [0, 1, 3]][t_pos_idx].unbind(1)
    # The side of the plane through camera, p and q on which r lies.
    turn = (p * torch.linalg.cross(q - p, r - p, dim=-1)).sum(-1).sign()
    side = turn[edges.faces] * torch.where(edges.turned, -1.0, 1.0).to(turn)
    edge = torch.repeat_interleave(torch.arange(len(edges.vertices), device=clip.device), edges.first.diff())
    zeros = torch.zeros(len(edges.vertices), dtype=clip.dtype, device=clip.device)
    left = zeros.scatter_reduce(0, edge, (side > 0).to(clip), "amax")
    right = zeros.scatter_reduce(0, edge, (side < 0).to(clip), "amax")
    outline = (left != right).nonzero()[:, 0]
    return outline, (left - right)[outline]


def _outline_crossings(
    clip: Tensor, edges: Edges, edge: Tensor, side: Tensor, axis: int, face: Tensor, depth: Tensor
) -> tuple[Tensor, Tensor]:
    """Keys and first pixels of the pairs, in rows (axis 0) or columns (1), that outline edges pass between."""
    height, width = face.shape
    n_lines, n_along = (height, width) if axis == 0 else (width, height)
    ends = clip[edges.vertices[edge]]  # [M, 2, 4]
    weight = pair_weights(ends, width / height)
    keep = (weight if axis == 0 else 1.0 - weight) > LEAST_WEIGHT
    ends, edge, side = ends[keep], edge[keep], side[keep]
    low, high = _line_range(ends, 1 - axis, n_lines)
    count = (high - low + 1).clamp(min=0)
    item = torch.repeat_interleave(torch.arange(len(count), device=clip.device), count)
    line = low[item] + torch.arange(len(item), device=clip.device) - (count.cumsum(0) - count)[item]
    ends, edge, side = ends[item], edge[item], side[item]

    in_row = torch.full_like(line, axis == 0, dtype=torch.bool)
    centre = pixel_centre(line, n_lines, clip)
    position, z, w = crossing(ends, in_row, centre)
    off = ends[..., 1 - axis] - centre[:, None] * ends[..., 3]
    place = (position + 1.0) * (0.5 * n_along) - 0.5
    index = place.floor()
    ok = ((off[:, 0] < 0) != (off[:, 1] < 0)) & (w > 0) & (z.abs() <= 1) & (index >= 0) & (index < n_along - 1)
    place, line, z, side, edge, ends = (x[ok] for x in (place, line, z, side, edge, ends))
    index = index[ok].long()
    pixel = line * width + index if axis == 0 else index * width + line
    following = pixel + (1 if axis == 0 else width)
    # The line's value grows along the pair where its first (second) coefficient is positive.
    next_sees = edge_lines(ends)[:, axis] * side > 0
    near, far = torch.where(next_sees, following, pixel), torch.where(next_sees, pixel, following)
    face, depth = face.reshape(-1), depth.reshape(-1)
    ok = (face[near] >= 0) & ((face[far] < 0) | (depth[far] > z)) & (face[near] != face[far])
    share = (place - index).clamp(0.0, 1.0)
    distance = torch.where(next_sees, share, 1.0 - share).float().contiguous().view(torch.int32).long()
    key = (distance << EDGE_BITS) | (edge << 1) | next_sees
    return key[ok], pixel[ok]


def _line_range(ends: Tensor, coordinate: int, n_lines: int) -> tuple[Tensor, Tensor]:
    """First and last line of pixels' centres that edges [M, 2, 4] may cross, last < first where none; 0: x, 1: y."""
    w = ends[..., 3]
    value = ends[..., coordinate]
    share = (LEAST_W - w[:, 0]) / torch.where(w[:, 1] == w[:, 0], torch.ones_like(w[:, 0]), w[:, 1] - w[:, 0])
    cut = value[:, 0] + share * (value[:, 1] - value[:, 0])  # where the edge passes the camera's plane
    behind = w < LEAST_W
    pixel = (torch.where(behind, cut[:, None], value) / torch.where(behind, torch.full_like(w, LEAST_W), w) + 1.0) * (
        0.5 * n_lines
    ) - 0.5
    low = (pixel.amin(1).clamp(-1.0, n_lines) - 0.01).ceil().clamp(min=0).long()
    high = (pixel.amax(1).clamp(-1.0, n_lines) + 0.01).floor().clamp(max=n_lines - 1).long()
    return low, torch.where(behind.all(1), low - 1, high)
