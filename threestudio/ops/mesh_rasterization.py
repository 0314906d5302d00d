"""Triangle meshes to pixels: which face is seen, where on it, and attributes there, differentiable in the vertices.

Visibility has no gradient and needs no rasterizer: one ray a pixel is asked of the mesh's bounding-volume tree, in
world space, so that one tree serves all views and triangles that cross the near plane need no clipping. Where on the
face a pixel's centre lies is computed again from the face's corners in homogeneous coordinates (Olano and Greer 1997,
"Triangle scan conversion using 2D homogeneous coordinates"), which is differentiable.

- torch: the reference below, a depth buffer over the pixels of each triangle's bounding box, in any floating type;
- warp: the ray query and fused kernels for CPU and CUDA, float32 (mesh_rasterization_warp.py).

The gradient of what appears and disappears at silhouettes is mesh_antialias.py's.
"""

from __future__ import annotations

import importlib.util
import os
from typing import List, NamedTuple, Tuple

import torch
from torch import Tensor

from threestudio.utils.errors import UserError

BACKENDS = ("auto", "torch", "warp")
NO_FACE = -1
BYTES_PER_PIXEL = 128  # fragments, their gradients and one image of three channels, about
# A face seen so nearly from its edge that float32 rounding moves its corners by a tenth of its width: where a pixel
# lies on it cannot be told, so its weights are clamped and carry no gradient. In units of length times clip w.
EDGE_ON = 5e-7
PACKED_CHUNK = 2**21  # pairs of face and pixel that the torch reference tests at once


class Fragments(NamedTuple):
    """What B cameras see of a mesh through the centres of H x W pixels."""

    face: Tensor  # [B, H, W] int64, -1 where there is none
    barycentric: Tensor  # [B, H, W, 3] weights of the face's corners, perspective-correct; 0 where there is none
    depth: Tensor  # [B, H, W] z / w, -1 at the near plane to 1 at the far one; 1 where there is none


def available_backends(device: torch.device) -> List[str]:
    """Backends that can run on this device, fastest first."""
    has_warp = device.type in ("cpu", "cuda") and importlib.util.find_spec("warp") is not None
    return ["warp", "torch"] if has_warp else ["torch"]


def choose_backend(backend: str, x: Tensor) -> str:
    """The backend that works on tensors like x: ``auto`` is Warp for float32 where there is Warp, else torch."""
    if backend not in BACKENDS:
        raise UserError(f"mesh rasterization: backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    available = available_backends(x.device)
    if backend == "auto":
        return available[0] if x.dtype == torch.float32 else "torch"
    if backend not in available:
        raise UserError(
            f"mesh rasterization: backend {backend!r} is not on {x.device.type} here, only {', '.join(available)}"
        )
    return backend


def rasterize(
    v_pos: Tensor, t_pos_idx: Tensor, mvp: Tensor, height: int, width: int, backend: str = "auto"
) -> Fragments:
    """What is seen of a mesh, from both sides of its faces, between the near and the far plane.

    Args:
        v_pos: vertices [V, 3], world units; t_pos_idx: vertices of each face [F, 3];
        mvp: world to clip space [B, 4, 4], row 0 of the image at y = -w.
    Returns:
        Fragments; barycentric and depth are differentiable in v_pos and mvp.
    Raises:
        UserError: a mesh without faces or with NaN, a singular mvp, or an image larger than memory.
    """
    check_image(mvp.shape[0], height, width, v_pos.device)
    check_mesh(v_pos, t_pos_idx)
    v_clip = clip_positions(v_pos, mvp)
    face = visible_faces(v_pos, t_pos_idx, mvp, height, width, backend)
    return locate_fragments(face, v_clip, t_pos_idx, backend)


def interpolate(attributes: Tensor, t_idx: Tensor, fragments: Fragments, backend: str = "auto") -> Tensor:
    """Vertex attributes at each pixel; zeros where no face is seen.

    Args:
        attributes: [V, C], or [B, V, C] where they differ by view; t_idx: [F, 3], the faces' corners in attributes,
            which need not be those in the positions (texture coordinates have their own).
    Returns:
        [B, H, W, C], differentiable in attributes and fragments.barycentric.
    """
    batch = fragments.face.shape[0]
    if attributes.ndim not in (2, 3) or (attributes.ndim == 3 and attributes.shape[0] not in (1, batch)):
        raise ValueError(f"interpolate: attributes: expected [V, C] or [{batch}, V, C], got {list(attributes.shape)}")
    attributes = attributes if attributes.ndim == 3 else attributes[None]
    low, high, last = torch.stack([*t_idx.aminmax(), fragments.face.max()]).tolist()
    if low < 0 or high >= attributes.shape[1] or last >= t_idx.shape[0]:
        raise UserError(
            f"interpolate: t_idx names rows {low} to {high} of attributes {list(attributes.shape)}, "
            f"the fragments' last face is {last} of {t_idx.shape[0]}: they belong to different meshes"
        )
    return _interpolate(attributes, t_idx, fragments.face, fragments.barycentric, backend)


def _interpolate(attributes: Tensor, t_idx: Tensor, face: Tensor, barycentric: Tensor, backend: str) -> Tensor:
    """attributes [B or 1, V, C] -> [B, H, W, C]"""
    if choose_backend(backend, attributes) == "warp":
        from threestudio.ops.mesh_rasterization_warp import interpolate_warp

        return interpolate_warp(attributes, t_idx, face, barycentric)
    return interpolate_torch(attributes, t_idx, face, barycentric)


def clip_positions(v_pos: Tensor, mvp: Tensor) -> Tensor:
    """v_pos [V, 3], mvp [B, 4, 4] -> clip space [B, V, 4], in v_pos' type also where autocast would make it half."""
    mvp = mvp.to(v_pos)
    with torch.autocast(v_pos.device.type, enabled=False):
        return v_pos @ mvp[:, :, :3].transpose(1, 2) + mvp[:, None, :, 3]


def visible_faces(
    v_pos: Tensor, t_pos_idx: Tensor, mvp: Tensor, height: int, width: int, backend: str = "auto"
) -> Tensor:
    """The nearest face behind each pixel's centre [B, H, W] int64, -1 where there is none. No gradient."""
    v_pos, mvp = v_pos.detach(), mvp.detach()
    clip_to_world = invert_camera(mvp)
    if choose_backend(backend, v_pos) == "warp":
        from threestudio.ops.mesh_rasterization_warp import visible_faces_warp

        return visible_faces_warp(v_pos, t_pos_idx, clip_to_world, height, width)
    return torch.stack([_depth_buffer(corners, height, width) for corners in clip_positions(v_pos, mvp)[:, t_pos_idx]])


def locate_fragments(face: Tensor, v_clip: Tensor, t_pos_idx: Tensor, backend: str = "auto") -> Fragments:
    """Where on its face each pixel's centre lies. face [B, H, W], v_clip [B, V, 4], t_pos_idx [F, 3]."""
    if choose_backend(backend, v_clip) == "warp":
        from threestudio.ops.mesh_rasterization_warp import barycentric_warp

        barycentric = barycentric_warp(face, v_clip, t_pos_idx)
    else:
        barycentric = barycentric_torch(face, v_clip, t_pos_idx)
    z, w = _interpolate(v_clip[..., 2:], t_pos_idx, face, barycentric, backend).unbind(-1)
    depth = torch.where((face < 0) | (w <= 0), torch.ones_like(z), z / torch.where(w > 0, w, torch.ones_like(w)))
    return Fragments(face, barycentric, depth)


# ---------------------------------------------------------------------------- checks


def check_image(batch: int, height: int, width: int, device: torch.device) -> None:
    """Refuses an image that has no pixel, or more than this machine's memory can hold."""
    if height < 1 or width < 1:
        raise UserError(f"mesh rasterization: expected an image of at least 1 x 1 pixels, got {height} x {width}")
    needed, there = batch * height * width * BYTES_PER_PIXEL, _memory(device)
    if needed > there:
        raise UserError(
            f"mesh rasterization: {batch} image(s) of {height} x {width} pixels need about {needed / 2**30:.0f} GiB, "
            f"{device.type} has {there / 2**30:.0f}: lower the resolution or the batch size"
        )


def _memory(device: torch.device) -> float:
    """Bytes of memory of the device, infinite where that is not known."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not every system tells
        return float("inf")


def check_mesh(v_pos: Tensor, t_pos_idx: Tensor) -> None:
    """Refuses a mesh without faces, with NaN or infinite vertices, or with faces of vertices that it has not."""
    if v_pos.ndim != 2 or v_pos.shape[1] != 3 or t_pos_idx.ndim != 2 or t_pos_idx.shape[1] != 3:
        raise ValueError(
            f"mesh rasterization: expected v_pos [V, 3] and t_pos_idx [F, 3], "
            f"got {list(v_pos.shape)} and {list(t_pos_idx.shape)}"
        )
    if t_pos_idx.shape[0] == 0 or v_pos.shape[0] == 0:
        raise UserError(
            f"mesh rasterization: the mesh is empty ({v_pos.shape[0]} vertices, {t_pos_idx.shape[0]} faces)"
        )
    low, high = t_pos_idx.aminmax()
    finite, low, high = torch.stack([v_pos.detach().isfinite().all().to(low), low, high]).tolist()  # one wait for a GPU
    if not finite:
        n_bad = int((~v_pos.detach().isfinite().all(-1)).sum())
        raise UserError(f"mesh rasterization: {n_bad} of {v_pos.shape[0]} vertices are NaN or infinite")
    if low < 0 or high >= v_pos.shape[0]:
        raise UserError(f"mesh rasterization: faces name vertices {low} to {high}, the mesh has {v_pos.shape[0]}")


def invert_camera(mvp: Tensor) -> Tensor:
    """Clip space to world [B, 4, 4], float64. mvp: [B, 4, 4]."""
    if mvp.ndim != 3 or tuple(mvp.shape[1:]) != (4, 4):
        raise ValueError(f"mesh rasterization: mvp: expected [B, 4, 4], got {list(mvp.shape)}")
    mvp = mvp.double()
    inverse, _ = torch.linalg.inv_ex(mvp)
    error = (mvp @ inverse - torch.eye(4, dtype=mvp.dtype, device=mvp.device)).abs().amax((1, 2))
    bad = (~(error < 1e-6)).nonzero()[:, 0].tolist()
    if bad:
        raise UserError(f"mesh rasterization: the camera of view {bad[0]} is degenerate: its mvp matrix has no inverse")
    return inverse


# ---------------------------------------------------------------------------- torch reference


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


def _pixel_boxes(corners: Tensor, height: int, width: int) -> Tuple[Tensor, Tensor]:
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
