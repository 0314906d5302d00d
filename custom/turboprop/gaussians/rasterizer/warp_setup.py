"""Starts Warp quietly. Modules with kernels import ``wp`` from here, and are imported only where they are used."""

import os
import sys
from types import ModuleType

import torch


def _start() -> ModuleType:
    import warp

    warp.config.log_level = warp.LOG_WARNING
    if torch.cuda.is_available():
        warp.init()
        return warp
    # Warp's library reports a missing CUDA driver below Python, on the process's standard error: no news on a CPU.
    sys.stderr.flush()
    standard_error = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        warp.init()
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)
        os.close(nowhere)
    return warp


wp = _start()


def launch(kernel, dimensions, arguments: list, device: torch.device) -> None:
    """On CUDA in torch's current stream, so that the two need not wait for each other."""
    warp_device = wp.device_from_torch(device)
    stream = wp.stream_from_torch(device) if warp_device.is_cuda else None
    wp.launch(kernel, dimensions, arguments, device=warp_device, stream=stream)


def array(x: torch.Tensor, dtype=None):
    """A Warp array on a tensor's memory, made contiguous; without gradient."""
    return wp.from_torch(x.detach().contiguous(), dtype=dtype)
