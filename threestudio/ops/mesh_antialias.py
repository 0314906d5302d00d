"""Antialiasing at a mesh's silhouettes, which is also the gradient of what appears and disappears there.

A picture of one sample a pixel changes in steps as a mesh moves, so its gradient in the vertices says nothing about
the outline. Here neighbouring pixels, p and q, are blended by where between their centres the outline passes: where
the nearer surface, seen in p, ends at a share t of the way to q, it covers

    t - 1/2 of q  where t > 1/2,       and leaves  1/2 - t of p  where t < 1/2.

Rows and columns each measure the outline that crosses them: pairs in a row by nx^2 and pairs in a column by ny^2,
where (nx, ny) is the outline's unit normal on the screen. Those weights add up to one, so an upright and a slanting
edge of one length move the same area, and the gradient of a crossing (1 / nx for an edge moved along its normal) stays
bounded however slanting the edge. They are constants for the gradient: t - 1/2 is as often positive as negative, so a
weight's change moves no area on average, and on a mesh of tiny triangles it would be noise alone.

The outline is found by edges, not by the faces that the pixels see: on a fine mesh neither of these has the edge
between them. An edge is part of an outline where all its faces lie on one side of it on the screen: borders of open
meshes, folds of closed ones, edges of any number of faces. Of several in one pair, the outermost counts, the nearest
to the pixel that does not see its surface: there the picture on that pixel's side begins.

That the blend at such pairs gives gradients of visibility is the idea of "analytic antialiasing" (Laine et al. 2020,
"Modular primitives for high-performance differentiable rendering"); that the gradient is one of edges, of Li et al.
2018, "Differentiable Monte Carlo ray tracing through edge sampling".
"""

from __future__ import annotations

from typing import NamedTuple, Tuple

import torch
from torch import Tensor

from threestudio.ops.mesh_rasterization import Fragments, check_mesh, choose_backend, clip_positions, pixel_centre

NO_EDGE = 2**63 - 1
EDGE_BITS = 32
# Pairs are left out that an edge blends by less than this share of a pixel: their gradient would be a small number
# times a large one.
LEAST_WEIGHT = 1e-4
# Nearest w at which the screen range of an edge is measured, where it reaches behind the camera.
LEAST_W = 1e-6


class Edges(NamedTuple):
    """Edges of a mesh and the faces on them: those of edge e are faces[first[e]:first[e + 1]]."""

    vertices: Tensor  # [E, 2] int64, the smaller first
    first: Tensor  # [E + 1] int64
    faces: Tensor  # [3 F] int64
    turned: Tensor  # [3 F] bool: the face runs along the edge from its larger vertex to its smaller


def mesh_edges(t_pos_idx: Tensor, n_vertices: int) -> Edges:
    """Each edge of the faces t_pos_idx [F, 3] once, whatever the number of faces on it."""
    start, end = t_pos_idx.reshape(-1).long(), t_pos_idx.roll(-1, 1).reshape(-1).long()
    keys, order = (torch.minimum(start, end) * n_vertices + torch.maximum(start, end)).sort()
    is_first = torch.ones_like(keys, dtype=torch.bool)
    is_first[1:] = keys[1:] != keys[:-1]
    first = is_first.nonzero()[:, 0]
    vertices = torch.stack([keys[first] // n_vertices, keys[first] % n_vertices], -1)
    first = torch.cat([first, first.new_tensor([keys.shape[0]])])
    return Edges(vertices, first, order // 3, (start > end)[order])


def antialias(
    image: Tensor, fragments: Fragments, v_pos: Tensor, t_pos_idx: Tensor, mvp: Tensor, backend: str = "auto"
) -> Tensor:
    """Blends neighbouring pixels where the mesh's outline passes between their centres.

    Args:
        image: [B, H, W, C], of which fragments say what each pixel sees; v_pos [V, 3], t_pos_idx [F, 3], mvp [B, 4, 4]:
            as they were given to rasterize.
    Returns:
        [B, H, W, C], differentiable in image, v_pos and mvp; each pixel a convex combination of it and its neighbours.
    """
    check_mesh(v_pos, t_pos_idx)
    return antialias_clip(image, fragments, clip_positions(v_pos, mvp), t_pos_idx, backend)


def antialias_clip(
    image: Tensor, fragments: Fragments, v_clip: Tensor, t_pos_idx: Tensor, backend: str = "auto"
) -> Tensor:
    """The same from vertices in clip space [B, V, 4]."""
    if image.ndim != 4 or image.shape[:3] != fragments.face.shape:
        raise ValueError(f"antialias: image: expected {[*fragments.face.shape, 'C']}, got {list(image.shape)}")
    edges = mesh_edges(t_pos_idx, v_clip.shape[1])
    clip, depth = v_clip.detach(), fragments.depth.detach()
    if choose_backend(backend, v_clip) == "warp":
        from threestudio.ops.mesh_antialias_warp import outline_pairs_warp

        winner = outline_pairs_warp(clip, t_pos_idx, edges, fragments.face, depth)
    else:
        winner = outline_pairs_torch(clip, t_pos_idx, edges, fragments.face, depth)
    return _blend(image, winner, v_clip, edges)


def _blend(image: Tensor, winner: Tensor, v_clip: Tensor, edges: Edges) -> Tensor:
    """winner [2, B, H, W]: what passes between a pixel and the next in its row (0) or column (1), see below."""
    batch, height, width, channels = image.shape
    n_pixels = batch * height * width
    pair = (winner.view(-1) != NO_EDGE).nonzero()[:, 0]
    if pair.shape[0] == 0:
        return image + 0.0 * v_clip.sum()  # in the graph of the vertices also where nothing is seen of them
    low_bits = winner.view(-1)[pair] & (2**EDGE_BITS - 1)
    edge, side = low_bits >> 1, (low_bits & 1).bool()  # side: the next pixel is the one that sees the edge's surface
    axis, pixel = pair // n_pixels, pair % n_pixels
    view = pixel // (height * width)
    ends = (view * v_clip.shape[1])[:, None] + edges.vertices[edge]
    ends = v_clip.reshape(-1, 4).index_select(0, ends.view(-1)).view(-1, 2, 4)
    column, row = pixel % width, pixel // width % height

    in_row = axis == 0
    centre = torch.where(in_row, pixel_centre(row, height, v_clip), pixel_centre(column, width, v_clip))
    position = crossing(ends, in_row, centre)[0]
    place = torch.where(
        in_row, (position + 1) * (0.5 * width) - 0.5 - column, (position + 1) * (0.5 * height) - 0.5 - row
    )
    weight = pair_weights(ends.detach(), width / height)
    weight = torch.where(in_row, weight, 1.0 - weight)

    following = pixel + torch.where(in_row, 1, width)
    near, far = torch.where(side, following, pixel), torch.where(side, pixel, following)
    t = torch.where(side, 1.0 - place, place).clamp(0.0, 1.0)
    reaches = t > 0.5  # into the pixel that does not see the surface
    amount = torch.where(reaches, t - 0.5, 0.5 - t) * weight
    target, source = torch.where(reaches, far, near), torch.where(reaches, near, far)
    # What is smaller than a pixel can have outlines to all four sides; more than the whole pixel cannot be replaced.
    total = amount.new_zeros(n_pixels).index_add(0, target, amount).clamp(min=1.0)
    amount = (amount / total.index_select(0, target)).to(image.dtype)[:, None]
    flat = image.reshape(n_pixels, channels)
    change = amount * (flat.index_select(0, source) - flat.index_select(0, target))
    return flat.index_add(0, target, change).view_as(image)


def crossing(ends: Tensor, in_row: Tensor, centre: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Where edges cross the lines through pixels' centres.

    Args:
        ends: clip space [M, 2, 4]; in_row: [M], whether the line is a row (y = centre) or a column; centre: [M].
    Returns:
        The other coordinate of the crossing, its z / w, and its w; [M] each.
    """
    x, y, z, w = ends.unbind(-1)
    along, across = torch.where(in_row[:, None], x, y), torch.where(in_row[:, None], y, x)
    off = across - centre[:, None] * w  # [M, 2], of opposite sign where the edge crosses
    difference = off[:, 0] - off[:, 1]
    share = (off[:, 0] / torch.where(difference == 0, torch.ones_like(difference), difference))[:, None]
    along, z, w = (p[:, 0] + share[:, 0] * (p[:, 1] - p[:, 0]) for p in (along, z, w))
    safe = torch.where(w == 0, torch.ones_like(w), w)
    return along / safe, z / safe, w


def edge_lines(ends: Tensor) -> Tensor:
    """The line a x + b y + c = 0 of edges [..., 2, 4] in normalized device coordinates [..., 3], not normalized."""
    p, q = ends[..., 0, [0, 1, 3]], ends[..., 1, [0, 1, 3]]
    return torch.linalg.cross(p, q - p, dim=-1)


def pair_weights(ends: Tensor, aspect: float) -> Tensor:
    """nx^2 of edges [M, 2, 4]: their share in rows [M]; that in columns is the rest."""
    a, b, _ = edge_lines(ends).unbind(-1)
    a, b = a.square(), (b * aspect).square()  # pixels are square, device coordinates are not
    return a / (a + b).clamp(min=torch.finfo(a.dtype).tiny)


# ---------------------------------------------------------------------------- torch reference


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


def _outline(clip: Tensor, t_pos_idx: Tensor, edges: Edges) -> Tuple[Tensor, Tensor]:
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
) -> Tuple[Tensor, Tensor]:
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


def _line_range(ends: Tensor, coordinate: int, n_lines: int) -> Tuple[Tensor, Tensor]:
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
