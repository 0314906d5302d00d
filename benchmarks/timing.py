"""Clocks that wait for the device, and work that takes turns, so that other load on the machine falls on all of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import torch

Name = TypeVar("Name", bound=Hashable)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    synchronize(device)
    start = clock()
    work()
    synchronize(device)
    return clock() - start


def median_seconds(work: Callable[[], Any], device: torch.device, repeats: int, warm_up: int = 2) -> float:
    for _ in range(warm_up):
        work()
    return statistics.median(seconds(work, device) for _ in range(repeats))


def take_turns(
    work: Mapping[Name, Callable[[], Any]],
    repeats: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, list[float]]:
    """Seconds of every round by name; a first round, with compilation, is not counted."""
    times: dict[Name, list[float]] = {name: [] for name in work}
    for round_index in range(repeats + 1):
        for name, function in work.items():
            taken = seconds(function, device, clock)
            if round_index > 0:
                times[name].append(taken)
    return times
