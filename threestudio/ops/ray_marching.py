"""Marching along rays in steps of constant length, through the occupied cells of a grid; two backends.

- torch: the reference below, which makes all candidates and keeps those in occupied cells;
- warp: one kernel source for CPU and CUDA, which skips empty cells (ray_marching_warp.py).

Both give the same samples, bit for bit on a CPU; the kernel is written to do so on CUDA too, where it has not been run.
"""

from __future__ import annotations

import importlib.util
from typing import Optional

import torch
from torch import Tensor

from threestudio.ops.ray_sampling import RaySamples, cell_of
from threestudio.utils.errors import UserError

BACKENDS = ("auto", "torch", "warp")
# Candidate samples the torch backend holds at once; bounds the memory of large images.
CANDIDATES_AT_ONCE = 2**22
# Steps of a ray; at more, a float32 distance is not much finer than a step.
MOST_STEPS = 2**20


def march_occupied(
    rays_o: Tensor,
    rays_d: Tensor,
    t_min: Tensor,
    t_max: Tensor,
    step: float,
    binaries: Optional[Tensor],
    bbox: Tensor,
    backend: str = "auto",
) -> RaySamples:
    """Steps of constant length from t_min to t_max, of which those are kept whose middle lies in an occupied cell.

    Args:
        rays_o, rays_d: [N, 3]; t_min, t_max: [N] (no steps where t_max <= t_min or either is NaN); step: length, > 0.
        binaries: occupied cells [R, R, R] bool over bbox [2, 3], or None: all are.
    Raises:
        UserError: a step that is not above 0, or so short that a ray has more than MOST_STEPS.
    """
    if backend not in BACKENDS:
        raise UserError(f"ray marching: backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    if not step > 0:
        raise UserError(f"ray marching: step length: expected > 0, got {step}")
    backend = _choose(backend, rays_o)
    if rays_o.shape[0] == 0:
        return RaySamples(torch.zeros(0, dtype=torch.int64, device=rays_o.device), t_min.new_zeros(0), t_min.new_zeros(0))
    length = torch.where(t_max > t_min, t_max - t_min, torch.zeros_like(t_min))
    n_steps = torch.ceil(length / step).clamp(max=MOST_STEPS + 1).long()
    most = int(n_steps.max().item())
    if most > MOST_STEPS:
        raise UserError(
            f"ray marching: a ray of length {length.max().item():.4g} has more than {MOST_STEPS} steps of {step:.4g}; "
            "expected fewer: is the step too short, or a ray's direction not of length 1?"
        )
    if backend == "warp":
        from threestudio.ops.ray_marching_warp import march_occupied_warp

        return march_occupied_warp(rays_o, rays_d, t_min, n_steps, step, binaries, bbox)
    return march_occupied_torch(rays_o, rays_d, t_min, n_steps, step, binaries, bbox)


def _choose(backend: str, rays_o: Tensor) -> str:
    can_warp = rays_o.dtype == torch.float32 and rays_o.device.type in ("cpu", "cuda") and importlib.util.find_spec("warp") is not None
    if backend == "auto":
        return "warp" if can_warp else "torch"
    if backend == "warp" and not can_warp:
        raise UserError(f"ray marching: backend 'warp' needs the package warp-lang and float32 rays, got {rays_o.dtype} on {rays_o.device}")
    return backend


def march_occupied_torch(
    rays_o: Tensor, rays_d: Tensor, t_min: Tensor, n_steps: Tensor, step: float, binaries: Optional[Tensor], bbox: Tensor
) -> RaySamples:
    """Reference; n_steps [N] int64: candidates of each ray."""
    rays_at_once = max(CANDIDATES_AT_ONCE // max(int(n_steps.max().item()), 1), 1)
    parts = [
        _march(slice(first, first + rays_at_once), rays_o, rays_d, t_min, n_steps, step, binaries, bbox)
        for first in range(0, rays_o.shape[0], rays_at_once)
    ]
    return RaySamples(*(torch.cat(part) for part in zip(*parts)))


def _march(
    rays: slice, rays_o: Tensor, rays_d: Tensor, t_min: Tensor, n_steps: Tensor, step: float, binaries: Optional[Tensor], bbox: Tensor
) -> RaySamples:
    count = n_steps[rays]
    ray = torch.repeat_interleave(torch.arange(count.shape[0], device=count.device) + rays.start, count)
    first = torch.repeat_interleave(count.cumsum(0) - count, count)
    t = t_min[ray] + (torch.arange(ray.shape[0], device=ray.device) - first).to(t_min.dtype) * step
    if binaries is not None:
        middle = rays_o[ray] + rays_d[ray] * (t + step / 2)[:, None]
        keep = binaries.reshape(-1)[cell_of(middle, bbox, binaries.shape[0])].nonzero()[:, 0]
        ray, t = ray[keep], t[keep]
    return RaySamples(ray, t, t + step)
