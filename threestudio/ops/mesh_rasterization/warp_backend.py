"""Mesh rasterization as Warp kernels for CPU and CUDA, float32; reference.py says what they compute.

On a CPU the kernels run over the pixels in order, so gradients add up in one order and repeat bit for bit; on CUDA the
atomic additions have no fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from threestudio.ops.mesh_rasterization.reference import EDGE_ON, NO_FACE
from threestudio.ops.warp_runtime import as_array, launch, wp

EDGE_ON_LIMIT = wp.constant(wp.float32(EDGE_ON))
EMPTY = wp.constant(wp.int64(NO_FACE))


@wp.func
def pixel_centre(index: int, size: int):
    """Normalized device coordinate of a pixel's centre."""
    return (wp.float32(index) + 0.5) * (2.0 / wp.float32(size)) - 1.0


@wp.kernel(enable_backward=False)
def visibility_kernel(
    mesh: wp.uint64,
    clip_to_world: wp.array(dtype=wp.mat44d),  # [B]
    height: int,
    width: int,
    face: wp.array3d(dtype=wp.int64),  # [B, H, W]
):
    view, row, column = wp.tid()
    one = wp.float64(1.0)
    two = wp.float64(2.0)
    half = wp.float64(0.5)
    # float64: the far plane is a difference of nearly equal numbers.
    x = (wp.float64(column) + half) * two / wp.float64(width) - one
    y = (wp.float64(row) + half) * two / wp.float64(height) - one
    near = clip_to_world[view] * wp.vec4d(x, y, -one, one)
    far = clip_to_world[view] * wp.vec4d(x, y, one, one)
    origin = wp.vec3d(near[0] / near[3], near[1] / near[3], near[2] / near[3])
    # Far minus near, times both w: finite even where the far plane is at infinity.
    direction = wp.vec3d(
        far[0] * near[3] - near[0] * far[3], far[1] * near[3] - near[1] * far[3], far[2] * near[3] - near[2] * far[3]
    )
    reach = wp.float64(1.0e30)
    if far[3] * near[3] > wp.float64(0.0):
        reach = wp.min(reach, wp.length(direction) / (far[3] * near[3]))
    if near[3] < wp.float64(0.0):
        direction = -direction
    direction = wp.normalize(direction)
    query = wp.mesh_query_ray(
        mesh,
        wp.vec3(wp.float32(origin[0]), wp.float32(origin[1]), wp.float32(origin[2])),
        wp.vec3(wp.float32(direction[0]), wp.float32(direction[1]), wp.float32(direction[2])),
        wp.float32(reach),
    )
    if query.result:
        face[view, row, column] = wp.int64(query.face)
    else:
        face[view, row, column] = EMPTY


@wp.struct
class Seen:
    """A face's corners as seen from a pixel, and the areas that the pixel's centre spans with its edges."""

    u: wp.vec3
    v: wp.vec3
    areas: wp.vec3
    total: float
    edge_on: wp.bool


@wp.func
def see(a: wp.vec4, b: wp.vec4, c: wp.vec4, x: float, y: float):
    s = Seen()
    s.u = wp.vec3(a[0] - x * a[3], b[0] - x * b[3], c[0] - x * c[3])
    s.v = wp.vec3(a[1] - y * a[3], b[1] - y * b[3], c[1] - y * c[3])
    s.areas = wp.cross(s.u, s.v)
    s.total = s.areas[0] + s.areas[1] + s.areas[2]
    longest = wp.max(
        wp.max(
            wp.length(wp.vec2(s.u[0] - s.u[1], s.v[0] - s.v[1])), wp.length(wp.vec2(s.u[1] - s.u[2], s.v[1] - s.v[2]))
        ),
        wp.length(wp.vec2(s.u[2] - s.u[0], s.v[2] - s.v[0])),
    )
    w = wp.max(wp.max(wp.abs(a[3]), wp.abs(b[3])), wp.abs(c[3]))
    s.edge_on = wp.abs(s.total) <= EDGE_ON_LIMIT * longest * w
    return s


@wp.kernel(enable_backward=False)
def barycentric_kernel(
    face: wp.array3d(dtype=wp.int64),
    v_clip: wp.array2d(dtype=wp.vec4),
    t_idx: wp.array2d(dtype=wp.int64),
    barycentric: wp.array3d(dtype=wp.vec3),
):
    view, row, column = wp.tid()
    f = wp.int32(face[view, row, column])
    if f < 0:
        return
    i = wp.int32(t_idx[f, 0])
    j = wp.int32(t_idx[f, 1])
    k = wp.int32(t_idx[f, 2])
    x = pixel_centre(column, face.shape[2])
    y = pixel_centre(row, face.shape[1])
    s = see(v_clip[view, i], v_clip[view, j], v_clip[view, k], x, y)
    weights = wp.vec3(1.0, 1.0, 1.0)
    if s.total != 0.0:
        weights = s.areas / s.total
    held = wp.vec3(wp.clamp(weights[0], 0.0, 1.0), wp.clamp(weights[1], 0.0, 1.0), wp.clamp(weights[2], 0.0, 1.0))
    barycentric[view, row, column] = held / (held[0] + held[1] + held[2])


@wp.kernel(enable_backward=False)
def barycentric_gradient_kernel(
    face: wp.array3d(dtype=wp.int64),
    v_clip: wp.array2d(dtype=wp.vec4),
    t_idx: wp.array2d(dtype=wp.int64),
    grad_barycentric: wp.array3d(dtype=wp.vec3),
    grad_v_clip: wp.array2d(dtype=wp.vec4),
):
    view, row, column = wp.tid()
    f = wp.int32(face[view, row, column])
    if f < 0:
        return
    i = wp.int32(t_idx[f, 0])
    j = wp.int32(t_idx[f, 1])
    k = wp.int32(t_idx[f, 2])
    x = pixel_centre(column, face.shape[2])
    y = pixel_centre(row, face.shape[1])
    s = see(v_clip[view, i], v_clip[view, j], v_clip[view, k], x, y)
    if s.edge_on:
        return
    # weights = areas / total and areas = u x v.
    grad = grad_barycentric[view, row, column]
    inner = wp.dot(grad, s.areas) / s.total
    grad_areas = (grad - wp.vec3(inner, inner, inner)) / s.total
    grad_u = wp.cross(s.v, grad_areas)
    grad_v = wp.cross(grad_areas, s.u)
    wp.atomic_add(grad_v_clip, view, i, wp.vec4(grad_u[0], grad_v[0], 0.0, -x * grad_u[0] - y * grad_v[0]))
    wp.atomic_add(grad_v_clip, view, j, wp.vec4(grad_u[1], grad_v[1], 0.0, -x * grad_u[1] - y * grad_v[1]))
    wp.atomic_add(grad_v_clip, view, k, wp.vec4(grad_u[2], grad_v[2], 0.0, -x * grad_u[2] - y * grad_v[2]))


@wp.kernel(enable_backward=False)
def interpolation_kernel(
    attributes: wp.array3d(dtype=wp.float32),  # [B or 1, V, C]
    t_idx: wp.array2d(dtype=wp.int64),
    face: wp.array3d(dtype=wp.int64),
    barycentric: wp.array3d(dtype=wp.vec3),
    values: wp.array4d(dtype=wp.float32),  # [B, H, W, C], zeros
):
    view, row, column = wp.tid()
    f = wp.int32(face[view, row, column])
    if f < 0:
        return
    i = wp.int32(t_idx[f, 0])
    j = wp.int32(t_idx[f, 1])
    k = wp.int32(t_idx[f, 2])
    layer = wp.min(view, attributes.shape[0] - 1)
    b = barycentric[view, row, column]
    for c in range(attributes.shape[2]):
        values[view, row, column, c] = (
            b[0] * attributes[layer, i, c] + b[1] * attributes[layer, j, c] + b[2] * attributes[layer, k, c]
        )


@wp.kernel(enable_backward=False)
def interpolation_gradient_kernel(
    attributes: wp.array3d(dtype=wp.float32),
    t_idx: wp.array2d(dtype=wp.int64),
    face: wp.array3d(dtype=wp.int64),
    barycentric: wp.array3d(dtype=wp.vec3),
    grad_values: wp.array4d(dtype=wp.float32),
    to_attributes: wp.bool,
    grad_attributes: wp.array3d(dtype=wp.float32),
    grad_barycentric: wp.array3d(dtype=wp.vec3),
):
    view, row, column = wp.tid()
    f = wp.int32(face[view, row, column])
    if f < 0:
        return
    i = wp.int32(t_idx[f, 0])
    j = wp.int32(t_idx[f, 1])
    k = wp.int32(t_idx[f, 2])
    layer = wp.min(view, attributes.shape[0] - 1)
    b = barycentric[view, row, column]
    total = wp.vec3(0.0, 0.0, 0.0)
    for c in range(attributes.shape[2]):
        g = grad_values[view, row, column, c]
        total += g * wp.vec3(attributes[layer, i, c], attributes[layer, j, c], attributes[layer, k, c])
        if to_attributes:
            wp.atomic_add(grad_attributes, layer, i, c, g * b[0])
            wp.atomic_add(grad_attributes, layer, j, c, g * b[1])
            wp.atomic_add(grad_attributes, layer, k, c, g * b[2])
    grad_barycentric[view, row, column] = total


def visible_faces_warp(v_pos: Tensor, t_pos_idx: Tensor, clip_to_world: Tensor, height: int, width: int) -> Tensor:
    """v_pos [V, 3], t_pos_idx [F, 3], clip_to_world [B, 4, 4] float64 -> [B, H, W] int64."""
    points, indices = v_pos.contiguous(), t_pos_idx.to(torch.int32).contiguous()
    batch = clip_to_world.shape[0]
    face = torch.empty(batch, height, width, dtype=torch.int64, device=v_pos.device)
    with wp.ScopedStream(wp.stream_from_torch(v_pos.device) if v_pos.is_cuda else None):
        mesh = wp.Mesh(as_array(points, wp.vec3), as_array(indices.view(-1)))
        arguments = [mesh.id, clip_to_world, height, width, face]
        launch(visibility_kernel, face.shape, arguments, v_pos.device)
    return face


class _Barycentric(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v_clip: Tensor, face: Tensor, t_idx: Tensor) -> Tensor:
        ctx.save_for_backward(v_clip, face, t_idx)
        barycentric = v_clip.new_zeros(*face.shape, 3)
        arguments = [face, v_clip, t_idx, barycentric]
        launch(barycentric_kernel, face.shape, arguments, v_clip.device)
        return barycentric

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_barycentric: Tensor) -> tuple:
        v_clip, face, t_idx = ctx.saved_tensors
        grad_v_clip = torch.zeros_like(v_clip, memory_format=torch.contiguous_format)
        arguments = [face, v_clip, t_idx, grad_barycentric, grad_v_clip]
        launch(barycentric_gradient_kernel, face.shape, arguments, v_clip.device)
        return grad_v_clip, None, None


class _Interpolation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attributes: Tensor, barycentric: Tensor, face: Tensor, t_idx: Tensor) -> Tensor:
        ctx.save_for_backward(attributes, barycentric, face, t_idx)
        values = attributes.new_zeros(*face.shape, attributes.shape[-1])
        arguments = [attributes, t_idx, face, barycentric, values]
        launch(interpolation_kernel, face.shape, arguments, attributes.device)
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_values: Tensor) -> tuple:
        attributes, barycentric, face, t_idx = ctx.saved_tensors
        to_attributes = ctx.needs_input_grad[0]
        grad_attributes = torch.zeros_like(
            attributes if to_attributes else attributes[:0], memory_format=torch.contiguous_format
        )
        grad_barycentric = torch.zeros_like(barycentric, memory_format=torch.contiguous_format)
        arguments = [attributes, t_idx, face, barycentric, grad_values]
        arguments += [to_attributes, grad_attributes, grad_barycentric]
        launch(interpolation_gradient_kernel, face.shape, arguments, attributes.device)
        return grad_attributes if to_attributes else None, grad_barycentric, None, None


def barycentric_warp(face: Tensor, v_clip: Tensor, t_pos_idx: Tensor) -> Tensor:
    """face [B, H, W], v_clip [B, V, 4], t_pos_idx [F, 3] -> [B, H, W, 3], differentiable in v_clip."""
    return _Barycentric.apply(v_clip, face, t_pos_idx.long())


def interpolate_warp(attributes: Tensor, t_idx: Tensor, face: Tensor, barycentric: Tensor) -> Tensor:
    """attributes [B or 1, V, C], t_idx [F, 3] -> [B, H, W, C], differentiable in attributes and barycentric."""
    return _Interpolation.apply(attributes, barycentric, face, t_idx.long())
