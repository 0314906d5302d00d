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

import torch
from torch import Tensor

from threestudio.ops.backends import Backends
from threestudio.ops.mesh_antialias.edges import Edges, crossing, mesh_edges, pair_weights
from threestudio.ops.mesh_antialias.reference import EDGE_BITS, NO_EDGE, outline_pairs_torch
from threestudio.ops.mesh_rasterization import Fragments, check_mesh, clip_positions
from threestudio.ops.mesh_rasterization.reference import pixel_centre

_BACKENDS = Backends("mesh antialias")


def antialias(
    image: Tensor,
    fragments: Fragments,
    v_pos: Tensor,
    t_pos_idx: Tensor,
    mvp: Tensor,
    backend: str = "auto",
    edges: Edges | None = None,
    check_values: bool = True,
) -> Tensor:
    """Blends neighbouring pixels where the mesh's outline passes between their centres.

    Args:
        image: [B, H, W, C], of which fragments say what each pixel sees; v_pos [V, 3], t_pos_idx [F, 3], mvp [B, 4, 4]:
            as they were given to rasterize.
        edges: those of t_pos_idx, where they are known (mesh_edges).
        check_values: false for a mesh that rasterize has checked already: a GPU is not waited for once more.
    Returns:
        [B, H, W, C], differentiable in image, v_pos and mvp; each pixel a convex combination of it and its neighbours.
    """
    if check_values:
        check_mesh(v_pos, t_pos_idx)
    return antialias_clip(image, fragments, clip_positions(v_pos, mvp), t_pos_idx, backend, edges)


def antialias_clip(
    image: Tensor,
    fragments: Fragments,
    v_clip: Tensor,
    t_pos_idx: Tensor,
    backend: str = "auto",
    edges: Edges | None = None,
) -> Tensor:
    """``antialias`` from vertices in clip space [B, V, 4]."""
    if image.ndim != 4 or image.shape[:3] != fragments.face.shape:
        raise ValueError(f"antialias: image: expected {[*fragments.face.shape, 'C']}, got {list(image.shape)}")
    edges = mesh_edges(t_pos_idx, v_clip.shape[1]) if edges is None else edges
    clip, depth = v_clip.detach(), fragments.depth.detach()
    if _BACKENDS.choose(backend, v_clip) == "warp":
        from threestudio.ops.mesh_antialias.warp_backend import outline_pairs_warp

        winner = outline_pairs_warp(clip, t_pos_idx, edges, fragments.face, depth)
    else:
        winner = outline_pairs_torch(clip, t_pos_idx, edges, fragments.face, depth)
    return _blend(image, winner, v_clip, edges)


def _blend(image: Tensor, winner: Tensor, v_clip: Tensor, edges: Edges) -> Tensor:
    """winner [2, B, H, W]: what passes between a pixel and the next in its row and column (outline_pairs_torch)."""
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
