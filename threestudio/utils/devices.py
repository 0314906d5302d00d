"""Which device a run is on: the trainer's, so that what is built before it and beside it lies where it trains.

And how numbers get there and back while Python goes on: a plain copy to or from a GPU waits until the GPU has done all
that it was asked before, and has then nothing to do until Python asks for more.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

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


def sent(x: Tensor, like: Tensor) -> Tensor:
    """A tensor of the CPU on another's device and in its type; to a GPU without waiting for it."""
    if not like.is_cuda:
        return x.to(like)
    return x.to(like.dtype).pin_memory().to(like.device, non_blocking=True)


@lru_cache(maxsize=256)
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


def constant(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Numbers as a tensor of another's device and type, sent there once and kept: not to be written to."""
    return _constant(values, like.dtype, like.device)


class Reading:
    """A tensor's values on their way to the CPU. `values` waits for them, and not for what the GPU was asked since."""

    def __init__(self, x: Tensor) -> None:
        self._copy = x.detach().to("cpu", non_blocking=True)
        self._arrived = None
        if x.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(x.device))

    def values(self) -> Any:
        """Numbers in lists, as `tolist` gives them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copy.tolist()
