"""Emission-absorption volume rendering (Max 1995; NeRF eq. 3) of samples along rays; three backends.

Samples come packed: S of them for all rays together, sorted by ray and then by distance, each with the index of its
ray. All backends give the same values and gradients, and on a CPU results that repeat bit for bit:

- torch: reference.py, in any floating type;
- warp: one kernel source for CPU and CUDA, float32 (warp_backend.py);
- nerfacc: where a user has it, on CUDA, float32; once differentiable; ``auto`` takes it once it has agreed
  (nerfacc_backend.py).

The ``_dense`` functions of reference.py do the same for a fixed number of samples a ray, [N, S]; they are the tests'
oracle.
"""

from __future__ import annotations

import torch
from torch import Tensor

from threestudio.ops.backends import Backends
from threestudio.ops.volume_rendering.nerfacc_backend import (
    accumulate_along_rays_nerfacc,
    nerfacc_agrees,
    weights_of_depth_nerfacc,
)
from threestudio.ops.volume_rendering.reference import (
    accumulate_along_rays_torch,
    optical_depth,
    weights_of_depth_torch,
)

_BACKENDS = Backends("volume rendering", "nerfacc")
available_backends = _BACKENDS.available


def choose_backend(backend: str, *inputs: Tensor) -> str:
    """The backend for tensors like these; without a sample it is torch, as the kernels take at least one."""
    chosen = _BACKENDS.choose(backend, *inputs, agrees=lambda: nerfacc_agrees(inputs[0].device))
    return chosen if inputs[0].numel() > 0 else "torch"


def weights_of_depth(depth: Tensor, ray_indices: Tensor, backend: str = "auto") -> tuple[Tensor, Tensor, Tensor]:
    """Weights, transmittance before the sample, and alpha, of packed samples of optical depth [S] in [0, OPAQUE].

    alpha = 1 - exp(-depth), transmittance = exp(-sum of the depths before), weight = their product.
    """
    backend = choose_backend(backend, depth)
    if backend == "warp":
        from threestudio.ops.volume_rendering.warp_backend import weights_of_depth_warp

        return weights_of_depth_warp(depth, ray_indices)
    return (weights_of_depth_nerfacc if backend == "nerfacc" else weights_of_depth_torch)(depth, ray_indices)


def render_weight_from_density(
    t_starts: Tensor, t_ends: Tensor, density: Tensor, ray_indices: Tensor, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, transmittance before the sample, and alpha of packed samples of a density; all tensors [S]."""
    return weights_of_depth(optical_depth(t_starts, t_ends, density), ray_indices, backend)


def render_weight_from_alpha(alpha: Tensor, ray_indices: Tensor, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Weights and transmittance of packed samples whose opacity alpha [S] in [0, 1] is known (NeuS)."""
    depth = -torch.log1p(-alpha.clamp(max=1 - 1e-7))
    _, transmittance, _ = weights_of_depth(depth, ray_indices, backend)
    return transmittance * alpha, transmittance


def accumulate_along_rays(
    weights: Tensor, values: Tensor | None, ray_indices: Tensor, n_rays: int, backend: str = "auto"
) -> Tensor:
    """Weighted sum on each ray: weights [S], values [S, C] or None (ones) -> [n_rays, C]. Raises ValueError for a ray's
    index that is not below n_rays (not looked for on CUDA, where the sample counts for none)."""
    if weights.device.type == "cpu" and ray_indices.numel() > 0:
        low, high = ray_indices[0].item(), ray_indices[-1].item()
        if low < 0 or high >= n_rays:
            raise ValueError(
                f"accumulate_along_rays: ray_indices: expected 0 to {n_rays - 1}, sorted, got {low} to {high}"
            )
    backend = choose_backend(backend, *([weights] if values is None else [weights, values]))
    if backend == "warp":
        from threestudio.ops.volume_rendering.warp_backend import accumulate_along_rays_warp

        return accumulate_along_rays_warp(weights, values, ray_indices, n_rays)
    accumulate = accumulate_along_rays_nerfacc if backend == "nerfacc" else accumulate_along_rays_torch
    return accumulate(weights, values, ray_indices, n_rays)
