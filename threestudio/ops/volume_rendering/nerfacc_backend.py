"""Weights and sums by nerfacc, where a user has it: on CUDA, float32, once differentiable."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from threestudio.ops.agreement import agrees, values_and_gradients, wave
from threestudio.ops.volume_rendering.reference import accumulate_along_rays_torch, weights_of_depth_torch


def weights_of_depth_nerfacc(depth: Tensor, ray_indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Packed optical depths [S] -> weights, transmittance before the sample, alpha, each [S]."""
    import nerfacc

    zeros = torch.zeros_like(depth)
    return nerfacc.render_weight_from_density(zeros, zeros + 1.0, depth, ray_indices=ray_indices)


def accumulate_along_rays_nerfacc(weights: Tensor, values: Tensor | None, ray_indices: Tensor, n_rays: int) -> Tensor:
    """weights [S], values [S, C] or None (ones) -> [n_rays, C]."""
    import nerfacc

    return nerfacc.accumulate_along_rays(weights, values, ray_indices=ray_indices, n_rays=n_rays)


def nerfacc_agrees(device: torch.device) -> bool:
    """Whether nerfacc has run a small call in this process and given the reference's numbers."""
    return agrees("nerfacc", device, lambda: _compared(device))


def _compared(device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Weights and sums along four rays, one of them without samples."""
    ray = torch.tensor([0, 0, 0, 2, 3, 3], device=device)
    depth, colors = wave(6, device=device), wave(6, 3, device=device)

    def results(
        weights_of_depth: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]],
        accumulate_along_rays: Callable[[Tensor, Tensor, Tensor, int], Tensor],
    ) -> list[Tensor]:
        def function(depth: Tensor, colors: Tensor) -> list[Tensor]:
            weights, transmittance, alpha = weights_of_depth(depth, ray)
            return [weights, transmittance, alpha, accumulate_along_rays(weights, colors, ray, 4)]

        return values_and_gradients(function, depth, colors)

    theirs = results(weights_of_depth_nerfacc, accumulate_along_rays_nerfacc)
    return list(zip(theirs, results(weights_of_depth_torch, accumulate_along_rays_torch)))
