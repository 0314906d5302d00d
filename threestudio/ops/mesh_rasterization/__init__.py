"""Triangle meshes to pixels: which face is seen, where on it, and attributes there, differentiable in the vertices.

Visibility has no gradient and needs no rasterizer: one ray a pixel is asked of the mesh's bounding-volume tree, in
world space, so that one tree serves all views and triangles that cross the near plane need no clipping. Where on the
face a pixel's centre lies is computed again from the face's corners in homogeneous coordinates (Olano and Greer 1997,
"Triangle scan conversion using 2D homogeneous coordinates"), which is differentiable.

- torch: reference.py, a depth buffer, in any floating type;
- warp: the ray query and fused kernels for CPU and CUDA, float32 (warp_backend.py).

The gradient of what appears and disappears at silhouettes is that of the op mesh_antialias.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from threestudio.ops.backends import Backends
from threestudio.ops.mesh_rasterization.checks import check_image, check_mesh, invert_camera
from threestudio.ops.mesh_rasterization.reference import (
    barycentric_torch,
    clip_positions,
    interpolate_torch,
    visible_faces_torch,
)
from threestudio.utils.errors import UserError

_BACKENDS = Backends("mesh rasterization")
available_backends = _BACKENDS.available


class Fragments(NamedTuple):
    """What B cameras see of a mesh through the centres of H x W pixels."""

    face: Tensor  # [B, H, W] int64, -1 where there is none
    barycentric: Tensor  # [B, H, W, 3] weights of the face's corners, perspective-correct; 0 where there is none
    depth: Tensor  # [B, H, W] z / w, -1 at the near plane to 1 at the far one; 1 where there is none


def rasterize(
    v_pos: Tensor, t_pos_idx: Tensor, mvp: Tensor, height: int, width: int, backend: str = "auto"
) -> Fragments:
    """What is seen of a mesh, from both sides of its faces, between the near and the far plane.

    Args:
        v_pos: vertices [V, 3], world units; t_pos_idx: vertices of each face [F, 3];
        mvp: world to clip space [B, 4, 4], row 0 of the image at y = -w.
    Returns:
        Fragments; barycentric and depth are differentiable in v_pos and mvp.
    Raises UserError for a mesh without faces or with NaN, a singular mvp, or an image larger than memory.
    """
    check_image(mvp.shape[0], height, width, v_pos.device)
    check_mesh(v_pos, t_pos_idx)
    v_clip = clip_positions(v_pos, mvp)
    face = visible_faces(v_pos, t_pos_idx, mvp, height, width, backend)
    return locate_fragments(face, v_clip, t_pos_idx, backend)


def interpolate(
    attributes: Tensor, t_idx: Tensor, fragments: Fragments, backend: str = "auto", check_values: bool = True
) -> Tensor:
    """Vertex attributes at each pixel; zeros where no face is seen.

    Args:
        attributes: [V, C], or [B, V, C] where they differ by view; t_idx: [F, 3], the faces' corners in attributes,
            which need not be those in the positions (texture coordinates have their own).
        check_values: false where attributes, t_idx and fragments are known to be of one mesh: a GPU is not waited for.
    Returns:
        [B, H, W, C], differentiable in attributes and fragments.barycentric.
    """
    batch = fragments.face.shape[0]
    if attributes.ndim not in (2, 3) or (attributes.ndim == 3 and attributes.shape[0] not in (1, batch)):
        raise ValueError(f"interpolate: attributes: expected [V, C] or [{batch}, V, C], got {list(attributes.shape)}")
    attributes = attributes if attributes.ndim == 3 else attributes[None]
    if check_values:
        low, high, last = torch.stack([*t_idx.aminmax(), fragments.face.max()]).tolist()
        if low < 0 or high >= attributes.shape[1] or last >= t_idx.shape[0]:
            raise UserError(
                f"interpolate: t_idx names rows {low} to {high} of attributes {list(attributes.shape)}, "
                f"the fragments' last face is {last} of {t_idx.shape[0]}: they belong to different meshes"
            )
    return _interpolate(attributes, t_idx, fragments.face, fragments.barycentric, backend)


def _interpolate(attributes: Tensor, t_idx: Tensor, face: Tensor, barycentric: Tensor, backend: str) -> Tensor:
    """attributes [B or 1, V, C] -> [B, H, W, C]"""
    if _BACKENDS.choose(backend, attributes) == "warp":
        from threestudio.ops.mesh_rasterization.warp_backend import interpolate_warp

        return interpolate_warp(attributes, t_idx, face, barycentric)
    return interpolate_torch(attributes, t_idx, face, barycentric)


def visible_faces(
    v_pos: Tensor, t_pos_idx: Tensor, mvp: Tensor, height: int, width: int, backend: str = "auto"
) -> Tensor:
    """The nearest face behind each pixel's centre [B, H, W] int64, -1 where there is none. No gradient."""
    v_pos, mvp = v_pos.detach(), mvp.detach()
    clip_to_world = invert_camera(mvp)
    if _BACKENDS.choose(backend, v_pos) == "warp":
        from threestudio.ops.mesh_rasterization.warp_backend import visible_faces_warp

        return visible_faces_warp(v_pos, t_pos_idx, clip_to_world, height, width)
    return visible_faces_torch(clip_positions(v_pos, mvp), t_pos_idx, height, width)


def locate_fragments(face: Tensor, v_clip: Tensor, t_pos_idx: Tensor, backend: str = "auto") -> Fragments:
    """Where on its face each pixel's centre lies. face [B, H, W], v_clip [B, V, 4], t_pos_idx [F, 3]."""
    if _BACKENDS.choose(backend, v_clip) == "warp":
        from threestudio.ops.mesh_rasterization.warp_backend import barycentric_warp

        barycentric = barycentric_warp(face, v_clip, t_pos_idx)
    else:
        barycentric = barycentric_torch(face, v_clip, t_pos_idx)
    z, w = _interpolate(v_clip[..., 2:], t_pos_idx, face, barycentric, backend).unbind(-1)
    depth = torch.where((face < 0) | (w <= 0), torch.ones_like(z), z / torch.where(w > 0, w, torch.ones_like(w)))
    return Fragments(face, barycentric, depth)
