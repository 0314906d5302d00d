"""Edges of a mesh, where they cross the lines through pixels' centres, and how much they blend."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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
    first = torch.cat([first, first.new_full((1,), keys.shape[0])])
    return Edges(vertices, first, order // 3, (start > end)[order])


def crossing(ends: Tensor, in_row: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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
    p, q = torch.cat([ends[..., :2], ends[..., 3:]], -1).unbind(-2)  # x, y, w
    return torch.linalg.cross(p, q - p, dim=-1)


def pair_weights(ends: Tensor, aspect: float) -> Tensor:
    """nx^2 of edges [M, 2, 4]: their share in rows [M]; that in columns is the rest."""
    a, b, _ = edge_lines(ends).unbind(-1)
    a, b = a.square(), (b * aspect).square()  # pixels are square, device coordinates are not
    return a / (a + b).clamp(min=torch.finfo(a.dtype).tiny)
