"""A machine's CUDA devices, hidden from tests that are not of CUDA.

What a test of the CPU expects (float32 teachers, results that repeat bit for bit) does not hold where a default picks
up a CUDA device. So on a machine with one, each test sees it only if it is marked gpu.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

HAS_CUDA = torch.cuda.is_available()
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
_AT_START = {name: os.environ.get(name) for name in _VARIABLES}
_QUERIES = {name: getattr(torch.cuda, name) for name in ("is_available", "device_count")}


def start() -> None:
    """To be called once: after it, hiding the devices from new processes does not hide them from this one."""
    if HAS_CUDA:
        torch.cuda.init()


@contextmanager
def cuda_visible(visible: bool) -> Iterator[None]:
    """Within the block, torch and the processes started see CUDA devices or none. What a test sets is put back."""
    answers = _QUERIES if visible or not HAS_CUDA else {"is_available": lambda: False, "device_count": lambda: 0}
    _set_environment(_AT_START if visible or not HAS_CUDA else {**_AT_START, "CUDA_VISIBLE_DEVICES": ""})
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    try:
        yield
    finally:
        _set_environment(_AT_START)
        for name, answer in _QUERIES.items():
            setattr(torch.cuda, name, answer)


def _set_environment(values: dict) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
