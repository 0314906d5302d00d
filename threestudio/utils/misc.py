"""Schedules, checkpoints, processes: the small things that every part needs."""

import gc
import math
import os
import pickle
import re
from collections.abc import Iterable
from typing import Any

import torch
from packaging import version

from threestudio.utils.devices import get_device, get_rank  # noqa: F401 (upstream's plugins take both from here)
from threestudio.utils.errors import MissingFileError, UserError
from threestudio.utils.value_checks import schedule_knots


def parse_version(text: str) -> version.Version:
    return version.parse(text)


def cleanup() -> None:
    """Frees what the garbage collector and the CUDA allocator hold on to."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def barrier() -> None:
    """Waits for all processes of a distributed run; does nothing in a single one."""
    if _distributed():
        torch.distributed.barrier()


def broadcast(tensor: torch.Tensor, src: int = 0) -> torch.Tensor:
    """`tensor` of rank `src`, on every rank."""
    if _distributed():
        torch.distributed.broadcast(tensor, src=src)
    return tensor


def _interpolate(start: float, end: float, fraction: float, interpolation: str) -> float:
    if interpolation == "linear":
        return start + (end - start) * fraction
    if interpolation == "exp":
        return math.exp(math.log(start) + (math.log(end) - math.log(start)) * fraction)
    raise ValueError(f"unknown interpolation '{interpolation}'; expected 'linear' or 'exp'")


def C(value: Any, epoch: int, global_step: int, interpolation: str = "linear") -> float:
    """The value of a schedule at a step.

    A number is itself. `[start_step, start_value, end_value, end_step]` is interpolated and held
    outside of its range (`start_step` 0 if left out); `[s0, v0, v1, s1, v2, s2, ...]` has several
    pieces. Where a piece's end is an int it counts steps, where it is a float it counts epochs.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    if isinstance(value, (str, bytes, bool)) or not isinstance(value, Iterable):
        raise TypeError(f"a schedule is a number or a list of numbers; got {value!r}")
    positions, values = schedule_knots(list(value))
    piece = 0
    for index in range(1, len(positions) - 1):
        if (global_step if isinstance(positions[index], int) else epoch) >= positions[index]:
            piece = index
    start, end = positions[piece], positions[piece + 1]
    now = global_step if isinstance(end, int) else epoch
    if end <= start:  # a jump, at its step
        return values[piece + 1] if now >= end else values[piece]
    fraction = max(min((now - start) / (end - start), 1.0), 0.0)
    return _interpolate(values[piece], values[piece + 1], fraction, interpolation)


def load_checkpoint(path: str, map_location: Any = "cpu") -> dict:
    """The content of a checkpoint file. Raises MissingFileError, or UserError if it is broken."""
    if not os.path.isfile(path):
        raise MissingFileError(f"checkpoint not found: {path}")
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it is cut short, or holds more than tensors and plain values, which are all that is loaded"
        raise UserError(f"checkpoint {path} is corrupt or not a checkpoint: {reason}") from error
    except Exception as error:  # torch raises many types here; each means an unreadable file
        reason = str(error).split(". ")[0].splitlines()[0] if str(error) else ""
        reason = reason if " " in reason else f"{type(error).__name__} {reason}".strip()
        raise UserError(f"checkpoint {path} is corrupt or not a checkpoint: {reason}") from error


def load_module_weights(
    path: str,
    module_name: str | None = None,
    ignore_modules: list[str] | None = None,
    map_location: Any = None,
) -> tuple[dict[str, torch.Tensor], int, int]:
    """(state_dict, epoch, global_step) of a checkpoint.

    `module_name` keeps only that submodule, with its prefix taken off; `ignore_modules` leaves
    those submodules out. Only one of the two may be given.
    """
    if module_name is not None and ignore_modules is not None:
        raise ValueError("module_name and ignore_modules cannot both be given")
    checkpoint = load_checkpoint(path, map_location or get_device())
    if "state_dict" not in checkpoint:
        raise UserError(f"checkpoint {path} has no state_dict")
    state = checkpoint["state_dict"]
    if ignore_modules is not None:
        prefixes = tuple(f"{name}." for name in ignore_modules)
        state = {key: value for key, value in state.items() if not key.startswith(prefixes)}
    if module_name is not None:
        prefix = re.compile(rf"^{re.escape(module_name)}\.(.+)$")
        matches = {key: prefix.match(key) for key in state}
        state = {match.group(1): state[key] for key, match in matches.items() if match}
        if not state:
            raise UserError(f"checkpoint {path} has no weights of a module '{module_name}'")
    return state, checkpoint.get("epoch", 0), checkpoint.get("global_step", 0)


def find_last_path(path: str) -> str:
    """`path` with the word LAST filled in: the newest trial (by its name) that has this path.

    `outputs/x/a_chair@LAST/ckpts/last.ckpt` finds the last trial of that prompt.
    """
    if "LAST" not in path:
        return path
    before, after = path.split("LAST", 1)
    parent, prefix = os.path.split(before)
    names = sorted(os.listdir(parent or "."), reverse=True) if os.path.isdir(parent or ".") else []
    for name in names:
        candidate = os.path.join(parent, name) + after
        if name.startswith(prefix) and os.path.exists(candidate):
            return candidate
    raise MissingFileError(f"no path matches {path}")
