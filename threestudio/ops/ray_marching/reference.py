"""Marching in plain torch: all candidates are made, and those in occupied cells kept."""

from __future__ import annotations

import torch
from torch import Tensor

from threestudio.ops.ray_sampling import RaySamples, cell_of

# Candidate samples held at once; bounds the memory of large images.
CANDIDATES_AT_ONCE = 2**22


def march_occupied_torch(
    rays_o: Tensor, rays_d: Tensor, t_min: Tensor, n_steps: Tensor, step: float, binaries: Tensor | None, bbox: Tensor
) -> RaySamples:
    """As march_occupied; n_steps [N] int64: candidates of each ray."""
    rays_at_once = max(CANDIDATES_AT_ONCE // max(int(n_steps.max().item()), 1), 1)
    parts = [
        _march(slice(first, first + rays_at_once), rays_o, rays_d, t_min, n_steps, step, binaries, bbox)
        for first in range(0, rays_o.shape[0], rays_at_once)
    ]
    return RaySamples(*(torch.cat(part) for part in zip(*parts)))


def _march(
    rays: slice,
    rays_o: Tensor,
    rays_d: Tensor,
    t_min: Tensor,
    n_steps: Tensor,
    step: float,
    binaries: Tensor | None,
    bbox: Tensor,
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
