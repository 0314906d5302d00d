"""Which timesteps a step looks at: the annealed range, the draw, and the asynchronous shift.

Random numbers come from torch's global generator of the device.
"""

from typing import Any

import torch
from torch import Tensor

from threestudio.utils.errors import UserError


def timestep_range(min_percent: float, max_percent: float, num_timesteps: int) -> tuple[int, int]:
    """The inclusive range of timesteps between two fractions of the schedule, inside [0, T - 1]. Raises ValueError
    unless 0 <= min_percent <= max_percent <= 1."""
    if not 0.0 <= min_percent <= max_percent <= 1.0:
        raise UserError(
            "min_step_percent, max_step_percent: expected 0 <= min <= max <= 1 at every step, "
            f"got {min_percent:g} and {max_percent:g}"
        )
    last = num_timesteps - 1
    return min(int(num_timesteps * min_percent), last), min(int(num_timesteps * max_percent), last)


def square_root_annealed_percent(min_percent: float, max_percent: float, progress: float) -> float:
    """HiFA's annealed timestep (Zhu and Zhuang 2023, equation 10): t = t_max - (t_max - t_min) sqrt(progress)."""
    return (max_percent - min_percent) * (1.0 - min(max(progress, 0.0), 1.0) ** 0.5) + min_percent


def linearly_annealed_percent(min_percent: float, max_percent: float, progress: float) -> float:
    """SDI's annealed timestep, as threestudio has it: t = t_max - (t_max - t_min) progress."""
    return (max_percent - min_percent) * (1.0 - min(max(progress, 0.0), 1.0)) + min_percent


def schedule_start(value: Any) -> float:
    """What a schedule starts from; a number is itself.

    A single timestep that is annealed over the whole run (HiFA's, SDI's) has its own course from t_max: a scheduled
    max_step_percent gives it t_max only, as in threestudio.
    """
    if isinstance(value, (int, float)):
        return float(value)
    numbers = list(value)
    return float(numbers[0] if len(numbers) == 3 else numbers[1])  # [v0, v1, end], else [start, v0, ...]


def sample_timesteps(
    min_step: int,
    max_step: int,
    batch_size: int,
    device: torch.device,
    shared: bool = False,  # one draw for the whole batch
) -> Tensor:
    """Uniform integers in [min_step, max_step], both ends included. Returns [B], int64."""
    draws = torch.randint(min_step, max_step + 1, (1 if shared else batch_size,), device=device)
    return draws.expand(batch_size)


def shift_timesteps(
    timesteps: Tensor,  # [B]
    min_step: int,  # T_min of the paper
    num_timesteps: int,
    plus_ratio: float,  # eta of the paper
    plus_random: bool,
    shared: bool = False,  # one random factor for the whole batch
) -> Tensor:
    """The later timesteps t' = t + dt of Asynchronous Score Distillation. Returns [B], int64, inside [1, T - 1].

    ScaleDreamer (Ma et al. 2024, arXiv 2407.02040): dt ~ U[0, eta (t - T_min)]; without `plus_random`, dt is the
    upper end. dt is cut so that t' stays on the schedule, before the random factor as in the published runs.
    """
    last = num_timesteps - 1
    shift = plus_ratio * (timesteps - min_step)
    shift = torch.minimum(shift.clamp(min=0), (last - timesteps).to(shift))
    if plus_random:
        factor = torch.rand(1 if shared else timesteps.shape[0], device=timesteps.device)
        shift = shift * factor
    return (timesteps + shift.long()).clamp(1, last)
