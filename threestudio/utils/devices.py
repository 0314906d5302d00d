"""Which device a run is on: the trainer's, so that what is built before it and beside it lies where it trains."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
_LOCAL_RANK_VARIABLES = ("LOCAL_RANK", "SLURM_LOCALID", *_RANK_VARIABLES)
_of_run: ContextVar[torch.device | None] = ContextVar("device_of_run", default=None)


def _first_integer(variables: tuple[str, ...]) -> int:
    for variable in variables:
        value = os.environ.get(variable)
        if value is not None:
            return int(value)
    return 0


def get_rank() -> int:
    """This process's number among all processes of the run."""
    return _first_integer(_RANK_VARIABLES)


def get_device() -> torch.device:
    """The device of this process: within ``running_on`` that of the run; else its own CUDA device, or the CPU."""
    of_run = _of_run.get()
    if of_run is not None:
        return of_run
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device(f"cuda:{_first_integer(_LOCAL_RANK_VARIABLES) % torch.cuda.device_count()}")


@contextmanager
def running_on(device: torch.device) -> Iterator[None]:
    """Within the block, ``get_device`` gives this device."""
    token = _of_run.set(device)
    try:
        yield
    finally:
        _of_run.reset(token)


def trainer_device(accelerator: str, devices: Any) -> torch.device:
    """The device that Lightning's Trainer takes in this process for these arguments of it.

    accelerator: cpu, gpu, cuda or auto. devices: a number, -1 for all, "auto", or the devices themselves: [1], "0,2".
    """
    if accelerator not in ("gpu", "cuda", "auto") or not torch.cuda.is_available():
        return torch.device("cpu")
    from pytorch_lightning.accelerators import CUDAAccelerator

    chosen = CUDAAccelerator.parse_devices(-1 if devices in (None, "auto") else devices) or [0]
    return torch.device(f"cuda:{chosen[_first_integer(_LOCAL_RANK_VARIABLES) % len(chosen)]}")
