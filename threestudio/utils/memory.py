"""How the C library's allocator treats the large, short-lived buffers of training on a CPU; how much memory is free."""

import ctypes
import os
import sys
from typing import Any

import torch

from threestudio.utils.errors import UserError

# Names and numbers of glibc's <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
NEVER = -1  # trim, however much is free: an int holds no threshold over 2 GB


def keep_freed_memory() -> bool:
    """Asks glibc to keep freed memory for the next allocation; false where there is no glibc.

    By default each buffer over 32 MB, and much that is smaller, is mapped from the kernel and given
    back at once, so that every step zeroes its pages anew: where page faults are slow, as in
    virtual machines, this took two thirds of a training step. A process then holds its peak.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    try:
        mallopt = library.mallopt
    except AttributeError:  # another C library
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, 64 * 2**20))
    answers = [mallopt(name, value) for name, value in settings]  # each is asked, whatever one before it says
    return all(answer == 1 for answer in answers)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on the device; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not sys.platform.startswith("linux"):
        return None
    with open("/proc/meminfo", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file)
    kilobytes = lines.get("MemAvailable", "").split()
    return int(kilobytes[0]) * 1024 if kilobytes else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_memory(n_bytes: int, device: torch.device, key: str, value: Any) -> None:
    """Raises UserError, naming the config's key and value, where the device has less than n_bytes free."""
    free = free_memory(device)
    if free is not None and n_bytes > free:
        raise UserError(f"{key}: {value} needs {n_bytes / 1e9:.3g} GB of memory, {free / 1e9:.3g} GB are free")
