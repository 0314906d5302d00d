"""Compositing of packed samples as Warp kernels: one source for CPU and CUDA, float32.

With depth_n the optical depth of a ray's sample n, and S_n the sum of those before it:

    alpha_n = 1 - exp(-depth_n)    transmittance_n = exp(-S_n)    weight_n = transmittance_n alpha_n

and, for gradients g_w, g_T, g_alpha of a loss in these three,

    d loss / d depth_n = (g_alpha_n + g_w_n transmittance_n) exp(-depth_n)
                         - sum_{m > n} transmittance_m (g_T_m + g_w_m alpha_m)

A thread stands at each sample; that of a ray's first (backward: last) one walks along the ray, the others return. So
no table of rays is needed, and on a CPU a ray's samples are read in one sweep. Sums have one order. A backward pass
that must itself be differentiable, which training does not have, goes through the torch reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from threestudio.ops.volume_rendering.reference import weights_of_depth_torch
from threestudio.ops.warp_runtime import as_array, launch_parts, shares, wp


@wp.func
def opacity_of(depth: wp.float32):
    """1 - exp(-depth), by its series where the difference would lose digits."""
    if wp.abs(depth) < 0.1:
        return depth * (1.0 - depth / 2.0 * (1.0 - depth / 3.0 * (1.0 - depth / 4.0 * (1.0 - depth / 5.0))))
    return 1.0 - wp.exp(-depth)


@wp.func
def is_on(ray_indices: wp.array(dtype=wp.int64), n: int, ray: wp.int64):
    """Whether there is a sample n and it is on that ray."""
    if n >= 0:
        if n < ray_indices.shape[0]:
            return ray_indices[n] == ray
    return False


@wp.kernel(enable_backward=False)
def weights_kernel(
    depths: wp.array(dtype=wp.float32),
    ray_indices: wp.array(dtype=wp.int64),
    first_sample: int,
    weights: wp.array(dtype=wp.float32),
    transmittances: wp.array(dtype=wp.float32),
    alphas: wp.array(dtype=wp.float32),
):
    n = first_sample + wp.tid()
    ray = ray_indices[n]
    if is_on(ray_indices, n - 1, ray):
        return
    before = float(0.0)
    while is_on(ray_indices, n, ray):
        depth = depths[n]
        transmittance = wp.exp(-before)
        alpha = opacity_of(depth)
        weights[n] = transmittance * alpha
        transmittances[n] = transmittance
        alphas[n] = alpha
        before += depth
        n += 1


@wp.kernel(enable_backward=False)
def weights_gradient_kernel(
    depths: wp.array(dtype=wp.float32),
    ray_indices: wp.array(dtype=wp.int64),
    transmittances: wp.array(dtype=wp.float32),
    alphas: wp.array(dtype=wp.float32),
    grad_weights: wp.array(dtype=wp.float32),
    grad_transmittances: wp.array(dtype=wp.float32),
    grad_alphas: wp.array(dtype=wp.float32),
    first_sample: int,
    grad_depths: wp.array(dtype=wp.float32),
):
    n = first_sample + wp.tid()
    ray = ray_indices[n]
    if is_on(ray_indices, n + 1, ray):
        return
    after = float(0.0)
    while is_on(ray_indices, n, ray):
        transmittance = transmittances[n]
        own = (grad_alphas[n] + grad_weights[n] * transmittance) * wp.exp(-depths[n])
        grad_depths[n] = own - after
        after += transmittance * (grad_transmittances[n] + grad_weights[n] * alphas[n])
        n -= 1


@wp.kernel(enable_backward=False)
def accumulate_kernel(
    weights: wp.array(dtype=wp.float32),
    values: wp.array2d(dtype=wp.float32),  # [S, C]; no rows: all ones
    ray_indices: wp.array(dtype=wp.int64),
    first_sample: int,
    totals: wp.array2d(dtype=wp.float32),  # [n_rays, C]
):
    n = first_sample + wp.tid()
    ray = ray_indices[n]
    if is_on(ray_indices, n - 1, ray):
        return
    if ray < wp.int64(0) or ray >= wp.int64(totals.shape[0]):
        return
    row = wp.int32(ray)
    while is_on(ray_indices, n, ray):
        weight = weights[n]
        for c in range(totals.shape[1]):
            value = float(1.0)
            if values.shape[0] > 0:
                value = values[n, c]
            totals[row, c] += weight * value
        n += 1


@wp.kernel(enable_backward=False)
def accumulate_gradient_kernel(
    weights: wp.array(dtype=wp.float32),
    values: wp.array2d(dtype=wp.float32),
    ray_indices: wp.array(dtype=wp.int64),
    grad_totals: wp.array2d(dtype=wp.float32),
    first_sample: int,
    grad_weights: wp.array(dtype=wp.float32),
    grad_values: wp.array2d(dtype=wp.float32),  # no rows: not wanted
):
    n = first_sample + wp.tid()
    ray = ray_indices[n]
    if ray < wp.int64(0) or ray >= wp.int64(grad_totals.shape[0]):
        return
    row = wp.int32(ray)
    total = float(0.0)
    for c in range(grad_totals.shape[1]):
        grad = grad_totals[row, c]
        if values.shape[0] > 0:
            total += grad * values[n, c]
        else:
            total += grad
        if grad_values.shape[0] > 0:
            grad_values[n, c] = grad * weights[n]
    grad_weights[n] = total


def _launch(kernel: Any, n_samples: int, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    device = inputs[0].device
    before, after = [as_array(x) for x in inputs], [as_array(x) for x in outputs]
    parts: list[tuple[tuple[int], list[Any]]] = [
        ((last - first,), [*before, first, *after]) for first, last in shares(n_samples, device)
    ]
    launch_parts(kernel, parts, device)


class _Weights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, depths: Tensor, ray_indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights, transmittances, alphas = (
            torch.empty_like(depths, memory_format=torch.contiguous_format) for _ in range(3)
        )
        _launch(weights_kernel, depths.shape[0], [depths, ray_indices], [weights, transmittances, alphas])
        ctx.save_for_backward(depths, ray_indices, transmittances, alphas)
        return weights, transmittances, alphas

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        depths, ray_indices = ctx.saved_tensors[:2]
        if torch.is_grad_enabled():
            return *torch.autograd.grad(
                weights_of_depth_torch(depths, ray_indices), depths, grads, create_graph=True
            ), None
        grad_depths = torch.empty_like(depths, memory_format=torch.contiguous_format)
        _launch(weights_gradient_kernel, depths.shape[0], [*ctx.saved_tensors, *grads], [grad_depths])
        return grad_depths, None


class _Accumulate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, values: Tensor | None, ray_indices: Tensor, n_rays: int) -> Tensor:
        channels = 1 if values is None else values.shape[1]
        ctx.has_values = values is not None
        no_rows = weights.new_zeros(0, channels)
        values = no_rows if values is None else values
        totals = weights.new_zeros(n_rays, channels)
        _launch(accumulate_kernel, weights.shape[0], [weights, values, ray_indices], [totals])
        ctx.save_for_backward(weights, values, ray_indices, no_rows)
        return totals

    @staticmethod
    def backward(ctx: Any, grad_totals: Tensor) -> tuple:
        weights, values, ray_indices, no_rows = ctx.saved_tensors
        need_values = ctx.needs_input_grad[1]
        if torch.is_grad_enabled():
            return _accumulate_gradient_torch(
                weights, values if ctx.has_values else None, ray_indices, grad_totals, need_values
            )
        grad_weights = torch.zeros_like(weights, memory_format=torch.contiguous_format)
        grad_values = torch.zeros_like(values, memory_format=torch.contiguous_format) if need_values else no_rows
        inputs = [weights, values, ray_indices, grad_totals]
        _launch(accumulate_gradient_kernel, weights.shape[0], inputs, [grad_weights, grad_values])
        return grad_weights, grad_values if need_values else None, None, None


def _accumulate_gradient_torch(
    weights: Tensor, values: Tensor | None, ray_indices: Tensor, grad_totals: Tensor, need_values: bool
) -> tuple:
    grad = grad_totals[ray_indices]
    grad_weights = grad.sum(-1) if values is None else (grad * values).sum(-1)
    return grad_weights, grad * weights[:, None] if need_values else None, None, None


def weights_of_depth_warp(depths: Tensor, ray_indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """depths [S] float32, at least one -> weights, transmittance before the sample, alpha, each [S]."""
    return _Weights.apply(depths, ray_indices)


def accumulate_along_rays_warp(weights: Tensor, values: Tensor | None, ray_indices: Tensor, n_rays: int) -> Tensor:
    """weights [S], values [S, C] or None (ones), float32 -> [n_rays, C]."""
    return _Accumulate.apply(weights, values, ray_indices, n_rays)
