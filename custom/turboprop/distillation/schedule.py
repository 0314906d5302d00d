"""The schedule of a guidance: which timesteps a step looks at, and how hard its guidance pulls."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from threestudio.utils.base import Updateable
from threestudio.utils.errors import UserError
from threestudio.utils.misc import C
from threestudio.utils.value_checks import Scheduled, check_at_least, schedule_positions, schedule_values

from .timesteps import (
    sample_timesteps,
    schedule_start,
    shift_timesteps,
    square_root_annealed_percent,
    timestep_range,
)

# (min, max, progress) -> fraction of the diffusion schedule: the one timestep of a step, at a fraction of the run
Course = Callable[[float, float, float], float]


@dataclass
class ScheduleConfig:
    guidance_scale: Scheduled = 7.5  # s of eps_u + s (eps_c - eps_u); a number or a schedule
    # largest entry of the gradient at the latents, and of that at the images; a number, a schedule or null
    grad_clip: Scheduled | None = None
    # fractions of the diffusion schedule: numbers or schedules [start_step, start, end, end_step]
    min_step_percent: Scheduled = 0.02
    max_step_percent: Scheduled = 0.98
    # HiFA: one timestep, from max to min as the square root of the run's progress
    sqrt_anneal: bool = False
    trainer_max_steps: int = 25000  # the length of the run, for sqrt_anneal
    # views of one object that a multi-view teacher looks at together: they share their timesteps, and come one
    # after another in a batch. 1: single views
    n_view: int = 1
    shared_timesteps: bool = False  # one timestep and one shift for all samples of a step
    plus_ratio: float = 0.1  # ASD: the shift is at most this times (t - T_min)
    plus_random: bool = True  # ASD: the shift is random below that, not equal to it
    # ASD: T_min as a fraction; null is the annealed min_step
    plus_min_step_percent: float | None = None


def check_schedule_config(cfg: ScheduleConfig) -> None:
    """Raises UserError, naming the key, for a value that no step can be made with."""
    for key in ("min_step_percent", "max_step_percent"):
        percents = getattr(cfg, key)
        if not all(0 <= percent <= 1 for percent in schedule_values(percents)):
            raise UserError(f"{key}: expected fractions in [0, 1] at every step, got {percents}")
    for key, least in (("n_view", 1), ("plus_ratio", 0), ("trainer_max_steps", 1)):
        check_at_least(key, getattr(cfg, key), least)
    first = cfg.plus_min_step_percent
    if first is not None and not 0 <= first <= 1:
        raise UserError(f"plus_min_step_percent: expected a fraction in [0, 1], got {first:g}")
    if cfg.grad_clip is not None and min(schedule_values(cfg.grad_clip)) < 0:
        raise UserError(f"grad_clip: expected at least 0 at every step, got {cfg.grad_clip}")


class Schedule(Updateable):
    """The values of a config's schedules at the step that runs, and the timesteps drawn within them."""

    min_step: int  # the range of timesteps, both ends included
    max_step: int
    guidance_scale: float
    grad_clip: float | None

    def __init__(
        self,
        cfg: ScheduleConfig,
        num_timesteps: int,
        device: torch.device,  # where timesteps are drawn
        course: Course | None = None,  # of a single timestep; None: HiFA's with sqrt_anneal, else a range
        inversion_steps: int | None = None,  # SDI: t' is up to a step of so many later than t; None: ASD's t'
    ) -> None:
        check_schedule_config(cfg)
        self.cfg, self.num_timesteps, self.device = cfg, num_timesteps, device
        self.course = course or (square_root_annealed_percent if cfg.sqrt_anneal else None)
        self.inversion_steps = inversion_steps
        self._check_range()
        self.update_step(0, 0)

    def _bounds(self, epoch: int, global_step: int) -> tuple[float, float]:
        """The least and the largest fraction of the diffusion schedule; of a single timestep, where its course ends and
        begins."""
        low, high = (C(percent, epoch, global_step) for percent in self._percents())
        return low, high

    def _percents(self) -> tuple[Any, Any]:
        largest = self.cfg.max_step_percent
        return self.cfg.min_step_percent, largest if self.course is None else schedule_start(largest)

    def _check_range(self) -> None:
        """Raises UserError for a range that is empty at some step, which else ends a run in its midst."""
        positions = [position for percent in self._percents() for position in schedule_positions(percent)]
        if any(isinstance(position, float) for position in positions):
            positions = []  # of epochs, of which nobody knows the steps
        # Between these both are linear; a jump has another value right before it.
        for step in (0, *positions, *(position - 1 for position in positions if position > 0)):
            try:
                timestep_range(*self._bounds(0, step), self.num_timesteps)
            except UserError as error:
                raise UserError(f"{error} (step {step})") from None

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Sets what the schedules say at this step."""
        cfg = self.cfg
        low, high = self._bounds(epoch, global_step)
        if self.course is not None:
            low = high = self.course(low, high, global_step / cfg.trainer_max_steps)
        self.min_step, self.max_step = timestep_range(low, high, self.num_timesteps)
        self.guidance_scale = float(C(cfg.guidance_scale, epoch, global_step))
        self.grad_clip = None if cfg.grad_clip is None else float(C(cfg.grad_clip, epoch, global_step))

    def range(self) -> dict[str, int]:
        """The range of timesteps, as figures to log."""
        return {"min_step": self.min_step, "max_step": self.max_step}

    def draw(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """t and the later t', each [B], from torch's global generator. The views of a set share both."""
        views, shared = self.cfg.n_view, self.cfg.shared_timesteps
        if batch_size % views:
            raise UserError(f"n_view: expected a batch of whole sets of {views} views, got {batch_size} views")
        timesteps = sample_timesteps(self.min_step, self.max_step, batch_size // views, self.device, shared)
        return timesteps.repeat_interleave(views), self._later(timesteps).repeat_interleave(views)

    def _later(self, timesteps: Tensor) -> Tensor:  # [S] -> [S]
        cfg, last = self.cfg, self.num_timesteps - 1
        if self.inversion_steps is not None:
            stride = max(self.num_timesteps // self.inversion_steps, 1)
            further = sample_timesteps(0, stride - 1, len(timesteps), self.device, cfg.shared_timesteps)
            return (timesteps + further).clamp(max=last)
        first = self.min_step
        if cfg.plus_min_step_percent is not None:
            first = int(self.num_timesteps * cfg.plus_min_step_percent)
        return shift_timesteps(
            timesteps, first, self.num_timesteps, cfg.plus_ratio, cfg.plus_random, cfg.shared_timesteps
        )
