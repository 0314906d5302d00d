"""Marching along rays in steps of constant length, through the occupied cells of a grid; two backends.

- torch: reference.py, which makes all candidates and keeps those in occupied cells;
- warp: one kernel source for CPU and CUDA, which skips empty cells (warp_backend.py).

Both give the same samples, bit for bit on a CPU; the kernel is written to do so on CUDA too, where it has not been run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from threestudio.ops.backends import Backends
from threestudio.ops.ray_marching.reference import march_occupied_torch
from threestudio.ops.ray_sampling import RaySamples
from threestudio.utils.errors import UserError

_BACKENDS = Backends("ray marching")
available_backends = _BACKENDS.available
# Steps of a ray; at more, a float32 distance is not much finer than a step.
MOST_STEPS = 2**20


def march_occupied(
    rays_o: Tensor,
    rays_d: Tensor,
    t_min: Tensor,
    t_max: Tensor,
    step: float,
    binaries: Tensor | None,
    bbox: Tensor,
    backend: str = "auto",
) -> RaySamples:
    """Steps of constant length from t_min to t_max, of which those are kept whose middle lies in an occupied cell.

    Args:
        rays_o, rays_d: [N, 3]; t_min, t_max: [N] (no steps where t_max <= t_min or either is NaN); step: length, > 0.
        binaries: occupied cells [R, R, R] bool over bbox [2, 3], or None: all are.
    Raises UserError for a step that is not above 0, or so short that a ray has more than MOST_STEPS.
    """
    if not step > 0:
        raise UserError(f"ray marching: step length: expected > 0, got {step}")
    backend = _BACKENDS.choose(backend, rays_o)
    if rays_o.shape[0] == 0:
        return RaySamples(
            torch.zeros(0, dtype=torch.int64, device=rays_o.device), t_min.new_zeros(0), t_min.new_zeros(0)
        )
    length = torch.where(t_max > t_min, t_max - t_min, torch.zeros_like(t_min))
    n_steps = torch.ceil(length / step).clamp(max=MOST_STEPS + 1).long()

    def check(most: int) -> None:
        if most > MOST_STEPS:
            raise UserError(
                f"ray marching: a ray of length {length.max().item():.4g} has more than {MOST_STEPS} steps of "
                f"{step:.4g}; expected fewer: is the step too short, or a ray's direction not of length 1?"
            )

    if backend == "warp":
        from threestudio.ops.ray_marching.warp_backend import march_occupied_warp

        return march_occupied_warp(rays_o, rays_d, t_min, n_steps, step, binaries, bbox, check)
    check(int(n_steps.max().item()))
    return march_occupied_torch(rays_o, rays_d, t_min, n_steps, step, binaries, bbox)
