"""What torch.cuda and Warp answer on a machine with one CUDA device, over the tensors of simulated_tensors.py.

Warp's kernels have one source for both devices, so here those for CUDA run on the CPU, on the values; that every array
of a launch lies on the launch's device is checked. (The kernels' CUDA builds are not made: their tests are marked gpu.)
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from pytest import MonkeyPatch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from tests.cuda.simulated_tensors import (
    CUDA,
    CudaTensor,
    DeviceMismatch,
    Operations,
    cuda_tensors,
    is_made_by_torch,
    moved,
    waits,
)

GIGABYTE = 2**30


@dataclass
class Seen:
    """What has run on the simulated device."""

    counter: Operations  # of torch, whose result lies there
    kernels: set[str] = field(default_factory=set)  # names of Warp's kernels launched there
    waits: Counter[str] = field(default_factory=Counter)  # of Python for the device, by the line that asks


class SimulatedEvent:
    """A mark in a stream whose work is always done. Waiting for it is waiting for the past: it is not counted."""

    def __init__(self, **kwargs: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        pass


@contextmanager
def simulated_cuda() -> Iterator[Seen]:
    """Within the block, this process has one CUDA device."""
    import warp

    waits.by_place = Counter()
    with MonkeyPatch.context() as patch:
        _simulate_torch(patch)
        with cuda_tensors() as counter:
            seen = Seen(counter, waits=waits.by_place)
            _simulate_warp(patch, warp, seen)
            yield seen


def _simulate_torch(patch: MonkeyPatch) -> None:
    properties = SimpleNamespace(name="simulated", major=8, minor=0, total_memory=16 * GIGABYTE)
    answers = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "simulated",
        "get_device_capability": (8, 0),
        "get_device_properties": properties,
        "mem_get_info": (8 * GIGABYTE, 16 * GIGABYTE),
        "max_memory_allocated": 0,
        "get_rng_state_all": [],
        "is_bf16_supported": True,
        **dict.fromkeys(
            ("_lazy_init", "set_device", "empty_cache", "synchronize", "set_rng_state_all", "manual_seed_all",
             "reset_peak_memory_stats", "get_rng_state", "set_rng_state", "manual_seed")
        ),
    }  # fmt: skip
    for name, answer in answers.items():
        patch.setattr(torch.cuda, name, lambda *args, answer=answer, **kwargs: answer)
    patch.setattr(torch.cuda, "Event", SimulatedEvent)
    patch.setattr(torch.cuda, "current_stream", lambda *args, **kwargs: SimpleNamespace(device=CUDA))
    autocast, load = torch.autocast.__init__, torch.load

    class Generator(torch.Generator):
        """One of CUDA draws on the CPU."""

        def __new__(cls, device: Any = None) -> torch.Generator:
            return super().__new__(cls)

    def autocast_on_cpu(self: Any, device_type: str, dtype: Any = None, **kwargs: Any) -> None:
        """autocast("cuda") casts what to C++ are tensors on the CPU."""
        on_cuda = device_type == "cuda"
        autocast(self, "cpu" if on_cuda else device_type, dtype=dtype or (torch.float16 if on_cuda else None), **kwargs)

    def load_to(file: Any, map_location: Any = None, **kwargs: Any) -> Any:
        """What a file's tensors lie on is decided after reading."""
        device = None if map_location is None or callable(map_location) else torch.device(map_location)
        content = load(file, map_location="cpu" if device is not None else map_location, **kwargs)
        return content if device is None else tree_map_only(Tensor, lambda x: moved(x, device), content)

    patch.setattr(torch.autocast, "__init__", autocast_on_cpu)
    patch.setattr(torch, "Generator", Generator)
    # Optimizers take the parameters of CUDA together where all are of these types.
    optimizer = importlib.import_module("torch.optim.optimizer")
    patch.setattr(optimizer, "_foreach_supported_types", [Tensor, torch.nn.Parameter, CudaTensor])
    patch.setattr(torch, "load", load_to)


class _WarpDevice:
    """A CUDA device to who asks; launches on it go to the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.of, self.is_cuda, self.is_cpu = device, True, False


def _simulate_warp(patch: MonkeyPatch, wp: Any, seen: Seen) -> None:
    from_torch, launch, cpu = wp.from_torch, wp.launch, wp.get_device("cpu")
    lies_on: dict[int, tuple[Any, torch.device | None]] = {}  # by id; the array is kept, so that the id stays its own

    def array_of(x: Tensor, dtype: Any = None, **kwargs: Any) -> Any:
        values = x.on_cpu if isinstance(x, CudaTensor) else x
        array = from_torch(values, **({} if dtype is None else {"dtype": dtype}), **kwargs)
        lies_on[id(array)] = (array, None if is_made_by_torch(x) else x.device)
        return array

    def launch_checked(
        kernel: Any, dim: Any, inputs: Any = (), outputs: Any = (), device: Any = None, **kwargs: Any
    ) -> None:
        asked = device.of if isinstance(device, _WarpDevice) else torch.device("cpu")
        for array in (*inputs, *outputs):
            if isinstance(array, wp.array) and lies_on[id(array)][1] not in (asked, None):
                raise DeviceMismatch(f"Warp kernel {kernel.key} on {asked}: an array lies on {lies_on[id(array)][1]}")
        if asked.type == "cuda":
            seen.kernels.add(kernel.key)
        kwargs.pop("stream", None)
        if len(lies_on) > 10_000:
            lies_on.clear()
        launch(kernel, dim, inputs=list(inputs), outputs=list(outputs), device=cpu, **kwargs)

    patch.setattr(wp, "from_torch", array_of)
    patch.setattr(wp, "launch", launch_checked)

    def device_of(device: Any) -> Any:
        asked = torch.device(device)
        return cpu if asked.type == "cpu" else _WarpDevice(asked)

    patch.setattr(wp, "device_from_torch", device_of)
    patch.setattr(wp, "stream_from_torch", lambda device=None: None)
