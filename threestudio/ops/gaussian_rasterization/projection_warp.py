"""projection.py as Warp kernels with a backward by hand: one source for CPU and CUDA, float32.

A thread handles one Gaussian in all views one after another, so gradients are summed up in one order without atomics
and come out the same bit for bit; so they should on CUDA, where they have not been run. Backward computes the forward
anew, which is cheaper than to keep it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from threestudio.ops.gaussian_rasterization.projection import (
    ALPHA_MIN,
    DILATION,
    ProjectedGaussians,
    guard_band,
    world_to_camera,
)
from threestudio.ops.warp_runtime import launch, wp

DILATED = wp.constant(wp.float32(DILATION))
LEAST_ALPHA = wp.constant(wp.float32(ALPHA_MIN))


@wp.func
def rotation_of(q: wp.vec4):
    """Of a unit quaternion, wxyz."""
    w = q[0]
    x = q[1]
    y = q[2]
    z = q[3]
    return wp.mat33(
        1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y),
        2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x),
        2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y),
    )  # fmt: skip


@wp.func
def rotation_gradient(q: wp.vec4, g: wp.mat33):
    """Gradient of <g, rotation_of(q)> in the four numbers of q."""
    w = q[0]
    x = q[1]
    y = q[2]
    z = q[3]
    return 2.0 * wp.vec4(
        x * (g[2, 1] - g[1, 2]) + y * (g[0, 2] - g[2, 0]) + z * (g[1, 0] - g[0, 1]),
        w * (g[2, 1] - g[1, 2]) + y * (g[0, 1] + g[1, 0]) + z * (g[0, 2] + g[2, 0]) - 2.0 * x * (g[1, 1] + g[2, 2]),
        w * (g[0, 2] - g[2, 0]) + x * (g[0, 1] + g[1, 0]) + z * (g[1, 2] + g[2, 1]) - 2.0 * y * (g[0, 0] + g[2, 2]),
        w * (g[1, 0] - g[0, 1]) + x * (g[0, 2] + g[2, 0]) + y * (g[1, 2] + g[2, 1]) - 2.0 * z * (g[0, 0] + g[1, 1]),
    )


@wp.func
def row_of_jacobian(w: wp.mat33, axis: int, slope: float, focal_by_depth: float):
    """Row of J W: how the pixel coordinate of an axis moves with the point in the world."""
    return focal_by_depth * (wp.vec3(w[axis, 0], w[axis, 1], w[axis, 2]) - slope * wp.vec3(w[2, 0], w[2, 1], w[2, 2]))


@wp.func
def determinant_of(m0: wp.vec3, m1: wp.vec3):
    """Of the dilated covariance whose undilated form is M M^T."""
    cross = wp.cross(m0, m1)
    return wp.dot(cross, cross) + DILATED * (wp.dot(m0, m0) + wp.dot(m1, m1)) + DILATED * DILATED


@wp.kernel(enable_backward=False)
def project_kernel(
    means: wp.array(dtype=wp.vec3),
    quaternions: wp.array(dtype=wp.vec4),
    scales: wp.array(dtype=wp.vec3),
    opacities: wp.array(dtype=wp.float32),
    rotations: wp.array(dtype=wp.mat33),
    positions: wp.array(dtype=wp.vec3),
    intrinsics: wp.array(dtype=wp.vec4),
    guards: wp.array(dtype=wp.vec4),  # least x / z and y / z, largest x / z and y / z
    size: wp.vec2,  # pixels
    near: float,
    means2d: wp.array2d(dtype=wp.vec2),
    conics: wp.array2d(dtype=wp.vec3),
    depths: wp.array2d(dtype=wp.float32),
    half_sizes: wp.array2d(dtype=wp.vec2),
    radii: wp.array2d(dtype=wp.float32),
    visible: wp.array2d(dtype=wp.bool),
):
    n = wp.tid()
    rotation = rotation_of(wp.normalize(quaternions[n]))
    opacity = opacities[n]
    if opacity < LEAST_ALPHA:
        return
    q = 2.0 * wp.log(opacity / LEAST_ALPHA)
    for view in range(means2d.shape[0]):
        w = rotations[view]
        local = w * (means[n] - positions[view])
        z = local[2]
        if z > near:
            k = intrinsics[view]
            guard = guards[view]
            sx = local[0] / z
            sy = local[1] / z
            p0 = row_of_jacobian(w, 0, wp.clamp(sx, guard[0], guard[2]), k[0] / z)
            p1 = row_of_jacobian(w, 1, wp.clamp(sy, guard[1], guard[3]), k[1] / z)
            m0 = wp.cw_mul(p0 * rotation, scales[n])
            m1 = wp.cw_mul(p1 * rotation, scales[n])
            a = wp.dot(m0, m0) + DILATED
            b = wp.dot(m0, m1)
            c = wp.dot(m1, m1) + DILATED
            determinant = determinant_of(m0, m1)
            mean = wp.vec2(sx * k[0] + k[2], sy * k[1] + k[3])
            half = wp.vec2(wp.sqrt(q * a), wp.sqrt(q * c))
            inside = mean[0] + half[0] > 0.0 and mean[0] - half[0] < size[0]
            inside = inside and mean[1] + half[1] > 0.0 and mean[1] - half[1] < size[1]
            if inside and wp.isfinite(determinant):
                largest = 0.5 * (a + c) + wp.length(wp.vec2(0.5 * (a - c), b))
                means2d[view, n] = mean
                conics[view, n] = wp.vec3(c, -b, a) / determinant
                depths[view, n] = z
                half_sizes[view, n] = half
                radii[view, n] = 3.0 * wp.sqrt(largest)
                visible[view, n] = True


@wp.kernel(enable_backward=False)
def project_backward_kernel(
    means: wp.array(dtype=wp.vec3),
    quaternions: wp.array(dtype=wp.vec4),
    scales: wp.array(dtype=wp.vec3),
    rotations: wp.array(dtype=wp.mat33),
    positions: wp.array(dtype=wp.vec3),
    intrinsics: wp.array(dtype=wp.vec4),
    guards: wp.array(dtype=wp.vec4),
    visible: wp.array2d(dtype=wp.bool),
    grad_means2d: wp.array2d(dtype=wp.vec2),
    grad_conics: wp.array2d(dtype=wp.vec3),
    grad_depths: wp.array2d(dtype=wp.float32),
    grad_means: wp.array(dtype=wp.vec3),
    grad_quaternions: wp.array(dtype=wp.vec4),
    grad_scales: wp.array(dtype=wp.vec3),
):
    n = wp.tid()
    scale = scales[n]
    unit = wp.normalize(quaternions[n])
    rotation = rotation_of(unit)
    to_mean = wp.vec3(0.0, 0.0, 0.0)
    to_scale = wp.vec3(0.0, 0.0, 0.0)
    to_rotation = wp.mat33(0.0)
    for view in range(visible.shape[0]):
        if visible[view, n]:
            w = rotations[view]
            local = w * (means[n] - positions[view])
            z = local[2]
            k = intrinsics[view]
            guard = guards[view]
            sx = local[0] / z
            sy = local[1] / z
            bounded_x = wp.clamp(sx, guard[0], guard[2])
            bounded_y = wp.clamp(sy, guard[1], guard[3])
            p0 = row_of_jacobian(w, 0, bounded_x, k[0] / z)
            p1 = row_of_jacobian(w, 1, bounded_y, k[1] / z)
            k0 = p0 * rotation
            k1 = p1 * rotation
            m0 = wp.cw_mul(k0, scale)
            m1 = wp.cw_mul(k1, scale)
            determinant = determinant_of(m0, m1)
            conic = wp.vec3(wp.dot(m1, m1) + DILATED, -wp.dot(m0, m1), wp.dot(m0, m0) + DILATED) / determinant
            # conic = (c, -b, a) / determinant
            g = grad_conics[view, n]
            to_determinant = -wp.dot(g, conic) / determinant
            to_a = g[2] / determinant + DILATED * to_determinant
            to_b = -g[1] / determinant
            to_c = g[0] / determinant + DILATED * to_determinant
            cross = wp.cross(m0, m1)
            to_m0 = 2.0 * to_a * m0 + to_b * m1 + 2.0 * to_determinant * wp.cross(m1, cross)
            to_m1 = 2.0 * to_c * m1 + to_b * m0 + 2.0 * to_determinant * wp.cross(cross, m0)
            to_scale += wp.cw_mul(to_m0, k0) + wp.cw_mul(to_m1, k1)
            to_k0 = wp.cw_mul(to_m0, scale)
            to_k1 = wp.cw_mul(to_m1, scale)
            to_rotation += wp.outer(p0, to_k0) + wp.outer(p1, to_k1)
            to_p0 = rotation * to_k0
            to_p1 = rotation * to_k1
            view_axis = wp.vec3(w[2, 0], w[2, 1], w[2, 2])
            grad2d = grad_means2d[view, n]
            to_sx = grad2d[0] * k[0]
            to_sy = grad2d[1] * k[1]
            if bounded_x == sx:
                to_sx -= k[0] / z * wp.dot(view_axis, to_p0)
            if bounded_y == sy:
                to_sy -= k[1] / z * wp.dot(view_axis, to_p1)
            to_z = grad_depths[view, n] - (wp.dot(p0, to_p0) + wp.dot(p1, to_p1) + sx * to_sx + sy * to_sy) / z
            to_mean += wp.vec3(to_sx / z, to_sy / z, to_z) * w
    to_unit = rotation_gradient(unit, to_rotation)
    grad_means[n] = to_mean
    grad_quaternions[n] = (to_unit - wp.dot(to_unit, unit) * unit) / wp.length(quaternions[n])
    grad_scales[n] = to_scale


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        quaternions: Tensor,
        scales: Tensor,
        opacities: Tensor,
        cameras: tuple[Tensor, ...],
        size: tuple,
    ) -> tuple:
        height, width, near = size
        shape = (cameras[0].shape[0], means.shape[0])
        means2d, half_sizes = means.new_zeros(*shape, 2), means.new_zeros(*shape, 2)
        conics, depths, radii = means.new_zeros(*shape, 3), means.new_zeros(shape), means.new_zeros(shape)
        visible = torch.zeros(shape, dtype=torch.bool, device=means.device)
        inputs = [means, quaternions, scales, opacities, *cameras, wp.vec2(width, height), near]
        outputs = (means2d, conics, depths, half_sizes, radii, visible)
        launch(project_kernel, [means.shape[0]], [*inputs, *outputs], means.device)
        ctx.save_for_backward(means, quaternions, scales, *cameras, visible)
        ctx.mark_non_differentiable(half_sizes, radii, visible)
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_means2d: Tensor, grad_conics: Tensor, grad_depths: Tensor, *_: Any) -> tuple:
        means = ctx.saved_tensors[0]
        grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in ctx.saved_tensors[:3]]
        arguments = [*ctx.saved_tensors, grad_means2d, grad_conics, grad_depths, *grads]
        launch(project_backward_kernel, [means.shape[0]], arguments, means.device)
        return (*grads, None, None, None)


def project_gaussians_warp(
    means: Tensor,  # [N, 3]
    quaternions: Tensor,  # [N, 4] wxyz
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    c2w: Tensor,  # [B, 4, 4] no gradient
    intrinsics: Tensor,  # [B, 4] no gradient
    height: int,
    width: int,
    near: float,
) -> ProjectedGaussians:
    """``project_gaussians`` in float32; what is not visible is 0 throughout."""
    rotation, position = world_to_camera(c2w)
    guards = torch.cat(guard_band(intrinsics, height, width), -1)
    cameras = tuple(x.detach().contiguous() for x in (rotation, position, intrinsics, guards))
    return ProjectedGaussians(*_Project.apply(means, quaternions, scales, opacities, cameras, (height, width, near)))
