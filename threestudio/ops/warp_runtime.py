"""Warp, started quietly, and its launches on torch's tensors: in its stream on CUDA, on its threads on a CPU.

Every module with kernels imports ``wp`` from here, and is itself imported only where its kernels are used.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import warp as wp
from torch import Tensor


@contextmanager
def _standard_error_muted() -> Iterator[None]:
    """Mutes the process's standard error itself: Warp's library writes to it below Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


wp.config.log_level = wp.LOG_WARNING
if torch.cuda.is_available():
    wp.init()
else:  # that there is no CUDA driver is no news here
    with _standard_error_muted():
        wp.init()

# Less work than this, in kernel threads, is not worth handing to another of the processor's.
SMALLEST_SHARE = 4096


def launch(kernel: Any, dimensions: Sequence[int], arguments: Sequence[Any], device: torch.device) -> None:
    """One launch; arguments are numbers, Warp arrays, and tensors, which become arrays of the kernel's own types."""
    warp_device = wp.device_from_torch(device)
    stream = wp.stream_from_torch(device) if warp_device.is_cuda else None
    arrays = [
        as_array(x, declared.type.dtype) if isinstance(x, Tensor) else x
        for x, declared in zip(arguments, kernel.adj.args, strict=True)
    ]
    wp.launch(kernel, tuple(dimensions), arrays, device=warp_device, stream=stream)


def launch_parts(kernel: Any, parts: Sequence[tuple[Sequence[int], list[Any]]], device: torch.device) -> None:
    """One launch for each (dimensions, arguments). On a CPU, where Warp runs a launch on one thread, launches run side
    by side on ``torch.get_num_threads()`` threads: no two of them may write to one place, and none may use tiles.

    (Warp keeps the tiles' storage of a CPU launch in a variable that all threads share. Optimized kernels without
    tiles do not look at it; in debug mode they do, so there launches come one after another.)
    """
    n_threads = min(torch.get_num_threads(), len(parts))
    if device.type != "cpu" or n_threads < 2 or wp.config.mode == "debug":
        for dimensions, arguments in parts:
            launch(kernel, dimensions, arguments, device)
        return
    # Compiled and loaded here: not by all threads at once.
    kernel.module.load(wp.device_from_torch(device))
    list(_pool(n_threads, os.getpid()).map(lambda part: launch(kernel, part[0], part[1], device), parts))


def shares(count: int, device: torch.device, work: int = 1) -> list[tuple[int, int]]:
    """0 ... count cut into stretches (first, last), one on CUDA, as many on a CPU as threads are worth it.

    work: of one of the count, in kernel threads' worth.
    """
    n = 1 if device.type != "cpu" else max(1, min(torch.get_num_threads(), count, count * work // SMALLEST_SHARE))
    edges = [count * k // n for k in range(n + 1)]
    return list(zip(edges[:-1], edges[1:]))


@lru_cache(maxsize=4)
def _pool(n_threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that wait for launches; of this process alone, as a fork takes no threads along."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="warp-launch")


def as_array(x: Tensor, dtype: Any = None) -> Any:
    """A Warp array on a tensor's memory (a contiguous copy, where it is not); dtype: e.g. wp.vec3 for [..., 3]."""
    x = x.detach().contiguous()
    return wp.from_torch(x, dtype=dtype)
