"""Emission-absorption volume rendering (Max 1995; NeRF eq. 3) of samples along rays; three backends.

Samples come packed: S of them for all rays together, sorted by ray and then by distance, each with the index of its
ray. All backends give the same values and gradients, and on a CPU results that repeat bit for bit:

- torch: the reference here, in any floating type;
- warp: one kernel source for CPU and CUDA, float32 (volume_rendering_warp.py);
- nerfacc: where a user has it, on CUDA, float32; once differentiable; ``auto`` takes it once it has agreed
  (agreement.py).

The ``_dense`` functions do the same for a fixed number of samples a ray, [N, S]; they are the tests' oracle.
"""

from __future__ import annotations

import importlib.util
from typing import List, Optional, Tuple

import torch
from torch import Tensor

from threestudio.ops.agreement import agrees, values_and_gradients, wave
from threestudio.utils.errors import UserError

BACKENDS = ("auto", "torch", "warp", "nerfacc")
# exp(-OPAQUE) is 0 in float32; an infinite optical depth would make NaN of the differences below.
OPAQUE = 1e3


def available_backends(device: torch.device) -> List[str]:
    """Backends that can run float32 on this device, fastest first."""
    names = []
    if device.type == "cuda" and importlib.util.find_spec("nerfacc") is not None:
        names.append("nerfacc")
    if device.type in ("cpu", "cuda") and importlib.util.find_spec("warp") is not None:
        names.append("warp")
    return names + ["torch"]


def _choose(backend: str, *values: Optional[Tensor]) -> str:
    if backend not in BACKENDS:
        raise UserError(f"volume rendering: backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    tensors = [x for x in values if x is not None]
    device, single = tensors[0].device, all(x.dtype == torch.float32 for x in tensors)
    available = available_backends(device) if single else ["torch"]
    if backend == "auto":
        # The kernels take float32 samples, at least one.
        if tensors[0].numel() == 0:
            return "torch"
        if available[0] == "nerfacc" and not agrees("nerfacc", device, lambda: _compared_with_nerfacc(device)):
            return available[1]
        return available[0]
    if backend not in available:
        kind = f"{device.type}, {'float32' if single else 'other than float32'}"
        raise UserError(f"volume rendering: backend {backend!r} is not available for {kind} (available: {', '.join(available)})")
    return backend if tensors[0].numel() > 0 else "torch"


def _compared_with_nerfacc(device: torch.device) -> List[Tuple[Tensor, Tensor]]:
    """Weights and sums along four rays, one of them without samples."""
    ray = torch.tensor([0, 0, 0, 2, 3, 3], device=device)
    depth, colors = wave(6, device=device), wave(6, 3, device=device)

    def results(backend: str) -> List[Tensor]:
        def function(depth: Tensor, colors: Tensor) -> List[Tensor]:
            weights, transmittance, alpha = weights_of_depth(depth, ray, backend)
            return [weights, transmittance, alpha, accumulate_along_rays(weights, colors, ray, 4, backend)]

        return values_and_gradients(function, depth, colors)

    return list(zip(results("nerfacc"), results("torch")))


def optical_depth(t_starts: Tensor, t_ends: Tensor, density: Tensor) -> Tensor:
    """density times length of each sample, at most OPAQUE; all of one shape."""
    return (density * (t_ends - t_starts)).clamp(max=OPAQUE)


def ray_offsets(ray_indices: Tensor, n_rays: int) -> Tensor:
    """Index of the first sample of each ray and, last, the number of samples [n_rays + 1]."""
    return torch.searchsorted(ray_indices.contiguous(), torch.arange(n_rays + 1, device=ray_indices.device))


def exclusive_sum(values: Tensor, ray_indices: Tensor) -> Tensor:
    """Sum of the values before each sample on its ray. values [S] >= 0, ray_indices [S], sorted -> [S].

    A difference of running totals, in float64: over millions of samples float32 would lose the small ones. NaN
    reaches the later samples of its own ray only.
    """
    if values.numel() == 0:
        return values
    first = torch.ones_like(ray_indices, dtype=torch.bool)
    first[1:] = ray_indices[1:] != ray_indices[:-1]
    start_of_ray = first.nonzero()[:, 0][first.cumsum(0) - 1]

    def since_start(x: Tensor) -> Tensor:
        before = x.cumsum(0).roll(1).index_fill(0, ray_indices.new_zeros(1), 0)
        return before - before[start_of_ray]

    is_nan = values.isnan()
    total = since_start(values.masked_fill(is_nan, 0.0).double()).clamp(min=0).to(values.dtype)
    return total.masked_fill(since_start(is_nan.long()) > 0, float("nan"))


def weights_of_depth(depth: Tensor, ray_indices: Tensor, backend: str = "auto") -> Tuple[Tensor, Tensor, Tensor]:
    """Weights, transmittance before the sample, and alpha, of packed samples of optical depth [S] in [0, OPAQUE].

    alpha = 1 - exp(-depth), transmittance = exp(-sum of the depths before), weight = their product.
    """
    backend = _choose(backend, depth)
    if backend == "warp":
        from threestudio.ops.volume_rendering_warp import weights_of_depth_warp

        return weights_of_depth_warp(depth, ray_indices)
    if backend == "nerfacc":
        import nerfacc

        zeros = torch.zeros_like(depth)
        return nerfacc.render_weight_from_density(zeros, zeros + 1.0, depth, ray_indices=ray_indices)
    transmittance = torch.exp(-exclusive_sum(depth, ray_indices))
    alpha = -torch.expm1(-depth)
    return transmittance * alpha, transmittance, alpha


def render_weight_from_density(
    t_starts: Tensor, t_ends: Tensor, density: Tensor, ray_indices: Tensor, backend: str = "auto"
) -> Tuple[Tensor, Tensor, Tensor]:
    """Weights, transmittance before the sample, and alpha of packed samples of a density; all tensors [S]."""
    return weights_of_depth(optical_depth(t_starts, t_ends, density), ray_indices, backend)


def render_weight_from_density_dense(t_starts: Tensor, t_ends: Tensor, density: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """The same for tensors [N, S]."""
    depth = optical_depth(t_starts, t_ends, density)
    transmittance = torch.exp(-(depth.cumsum(-1) - depth))
    alpha = -torch.expm1(-depth)
    return transmittance * alpha, transmittance, alpha


def render_weight_from_alpha(alpha: Tensor, ray_indices: Tensor, backend: str = "auto") -> Tuple[Tensor, Tensor]:
    """Weights and transmittance of packed samples whose opacity alpha [S] in [0, 1] is known (NeuS)."""
    depth = -torch.log1p(-alpha.clamp(max=1 - 1e-7))
    _, transmittance, _ = weights_of_depth(depth, ray_indices, backend)
    return transmittance * alpha, transmittance


def accumulate_along_rays(
    weights: Tensor, values: Optional[Tensor], ray_indices: Tensor, n_rays: int, backend: str = "auto"
) -> Tensor:
    """Weighted sum on each ray: weights [S], values [S, C] or None (ones) -> [n_rays, C].

    Raises:
        ValueError: a ray's index that is not below n_rays (not looked for on CUDA, where the sample counts for none).
    """
    if weights.device.type == "cpu" and ray_indices.numel() > 0:
        low, high = ray_indices[0].item(), ray_indices[-1].item()
        if low < 0 or high >= n_rays:
            raise ValueError(f"accumulate_along_rays: ray_indices: expected 0 to {n_rays - 1}, sorted, got {low} to {high}")
    backend = _choose(backend, weights, values)
    if backend == "warp":
        from threestudio.ops.volume_rendering_warp import accumulate_along_rays_warp

        return accumulate_along_rays_warp(weights, values, ray_indices, n_rays)
    if backend == "nerfacc":
        import nerfacc

        return nerfacc.accumulate_along_rays(weights, values, ray_indices=ray_indices, n_rays=n_rays)
    weighted = weights[:, None] if values is None else weights[:, None] * values
    return weighted.new_zeros(n_rays, weighted.shape[1]).index_add(0, ray_indices, weighted)


def accumulate_along_rays_dense(weights: Tensor, values: Optional[Tensor]) -> Tensor:
    """The same for weights [N, S], values [N, S, C] or None -> [N, C]."""
    return weights.sum(-1, keepdim=True) if values is None else (weights[..., None] * values).sum(-2)
