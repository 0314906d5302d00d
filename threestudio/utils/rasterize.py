"""Mesh rasterization behind upstream's names, for callers that hold vertices in clip space.

Images of fragments ("rast") are [B, H, W, 4]: weights of the face's first and second corner, z / w, and the face's
index plus one, 0 where no face is seen. New code has less to carry with threestudio/ops/mesh_rasterization/.
"""

from __future__ import annotations

from typing import Any, Optional, Tuple, Union

import torch
from torch import Tensor

from threestudio.ops import mesh_antialias, mesh_rasterization
from threestudio.ops.mesh_rasterization import Fragments, clip_positions
from threestudio.utils.errors import UserError, with_suggestion

CONTEXT_TYPES = ("gl", "cuda")


class NVDiffRasterizerContext:
    """Upstream's rasterizer by its name and surface, made of this project's own operators.

    Args:
        context_type: gl or cuda. Both are accepted and mean the same: there is no graphics context to make.
        device: where the tensors are; kept as an attribute for callers that read it.
    """

    def __init__(self, context_type: str, device: Union[torch.device, str]) -> None:
        check_context_type(context_type)
        self.context_type = context_type
        self.device = torch.device(device)

    def vertex_transform(self, verts: Tensor, mvp_mtx: Tensor) -> Tensor:
        """verts [V, 3], mvp_mtx [B, 4, 4] -> clip space [B, V, 4]."""
        return clip_positions(verts, mvp_mtx.to(verts))

    def rasterize(self, pos: Tensor, tri: Tensor, resolution: Union[int, Tuple[int, int]]) -> Tuple[Tensor, Tensor]:
        """pos: clip space [B, V, 4]; tri: [F, 3]; resolution: (height, width), or one number for both.

        Returns:
            rast [B, H, W, 4], differentiable in pos but for the face; and rast_db [B, H, W, 0]: there are no
            derivatives by pixel, which only texture mipmaps need.
        """
        height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
        pos, tri = pos.float(), tri.long()
        mesh_rasterization.check_image(pos.shape[0], height, width, pos.device)
        views = []
        for clip in pos.detach():
            v_pos, mvp = world_of_clip(clip)
            mesh_rasterization.check_mesh(v_pos, tri)
            views.append(mesh_rasterization.visible_faces(v_pos, tri, mvp[None], height, width))
        fragments = mesh_rasterization.locate_fragments(torch.cat(views), pos, tri)
        rast = torch.cat(
            [
                fragments.barycentric[..., :2],
                _depth_or_zero(fragments)[..., None],
                (fragments.face + 1).to(pos)[..., None],
            ],
            -1,
        )
        return rast, rast.new_zeros(*rast.shape[:3], 0)

    def rasterize_one(self, pos: Tensor, tri: Tensor, resolution: Union[int, Tuple[int, int]]) -> Tuple[Tensor, Tensor]:
        """The same for one view: pos [V, 4] -> [H, W, 4], [H, W, 0]."""
        rast, rast_db = self.rasterize(pos[None], tri, resolution)
        return rast[0], rast_db[0]

    def antialias(self, color: Tensor, rast: Tensor, pos: Tensor, tri: Tensor) -> Tensor:
        """color [B, H, W, C], rast [B, H, W, 4], pos: clip space [B, V, 4], tri [F, 3] -> [B, H, W, C]."""
        return mesh_antialias.antialias_clip(color.float(), _fragments(rast.detach()), pos.float(), tri.long())

    def interpolate(
        self,
        attr: Tensor,
        rast: Tensor,
        tri: Tensor,
        rast_db: Optional[Tensor] = None,
        diff_attrs: Any = None,
    ) -> Tuple[Tensor, Tensor]:
        """attr [V, C] or [B or 1, V, C] -> [B, H, W, C], and an image of no channels (derivatives by pixel)."""
        if diff_attrs is not None:
            raise UserError("interpolate: diff_attrs: derivatives by pixel are not available here, leave it None")
        values = mesh_rasterization.interpolate(attr.float(), tri.long(), _fragments(rast))
        return values, values.new_zeros(*values.shape[:3], 0)

    def interpolate_one(
        self, attr: Tensor, rast: Tensor, tri: Tensor, rast_db: Optional[Tensor] = None, diff_attrs: Any = None
    ) -> Tuple[Tensor, Tensor]:
        """attr [V, C], rast [1, H, W, 4] -> [1, H, W, C], [1, H, W, 0]."""
        return self.interpolate(attr[None], rast, tri, rast_db, diff_attrs)


def check_context_type(context_type: str) -> None:
    if context_type not in CONTEXT_TYPES:
        raise UserError(
            with_suggestion(
                f"context_type: expected gl or cuda, got {context_type!r}", str(context_type), CONTEXT_TYPES
            )
        )


def world_of_clip(clip: Tensor) -> Tuple[Tensor, Tensor]:
    """A world that these clip-space vertices [V, 4] could have come from: positions [V, 3] and a matrix [4, 4].

    Rays need a space where faces are flat and the vertices have a fourth coordinate of one. Any matrix takes such a
    space to a hyperplane n . c = 1 of clip space. So n is fitted to the vertices; with three directions at right angles
    to it, it is the inverse of a camera's matrix. For a usual projection, where w is a function of z, both are enough.
    """
    if not clip.isfinite().all():
        raise UserError("rasterize: pos: some clip-space vertices are NaN or infinite")
    clip = clip.double()
    ones = torch.ones(clip.shape[0], 1, dtype=clip.dtype, device=clip.device)
    normal = torch.zeros(4, dtype=clip.dtype, device=clip.device)
    for first in (2, 0):  # z and w alone; else all four
        normal.zero_()
        normal[first:] = (torch.linalg.pinv(clip[:, first:]) @ ones)[:, 0]
        if ((clip @ normal) - 1.0).abs().amax() < 1e-3:
            break
    else:
        raise UserError(
            "rasterize: pos: these clip-space vertices are not a mesh seen by any camera (no matrix gives them)"
        )
    others = torch.linalg.svd(normal[None]).Vh[1:]  # [3, 4]
    inverse = torch.cat([others, normal[None]])
    return (clip @ others.T).float(), torch.linalg.inv(inverse)


def _depth_or_zero(fragments: Fragments) -> Tensor:
    return torch.where(fragments.face < 0, torch.zeros_like(fragments.depth), fragments.depth)


def _fragments(rast: Tensor) -> Fragments:
    face = rast[..., 3].detach().round().long() - 1
    covered = (face >= 0)[..., None]
    weights = torch.cat([rast[..., :2], 1.0 - rast[..., :1] - rast[..., 1:2]], -1)
    return Fragments(
        face,
        torch.where(covered, weights, torch.zeros_like(weights)),
        torch.where(covered[..., 0], rast[..., 2], torch.ones_like(rast[..., 2])),
    )
