"""What a slot of a window finds around it, and another slot changes: attributes of modules, random state, modes."""

from __future__ import annotations

from typing import Any, Iterator, List, NamedTuple, Sequence, Set, Tuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from threestudio.utils.base import Updateable

from ..contract import SharesParameters
from ..keys import RandomState

# What torch keeps in every module: its tensors are followed, what hangs on its calls (hooks) is not a step's to change.
TENSORS = ("_parameters", "_buffers")
INTERNAL = frozenset(vars(nn.Module())) - {"training"}


def parts_of(system: nn.Module) -> List[Any]:
    """All modules, and all things with an update of each step, that are reached from a system: each once.

    Data sets are left out: they draw for all slots, one after the other.
    """
    found: List[Any] = []
    seen: Set[int] = set()
    waiting: List[Any] = [system]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, Dataset):
            continue
        if isinstance(value, (nn.Module, Updateable)):
            found.append(value)
            waiting.extend(_held_by(value))
        elif isinstance(value, (list, tuple)):
            waiting.extend(value)
        elif isinstance(value, dict):
            waiting.extend(value.values())
        else:
            continue
        seen.add(id(value))
    return found


def _held_by(part: Any) -> Iterator[Any]:
    if isinstance(part, nn.Module):
        yield from part._modules.values()
    if isinstance(part, SharesParameters):
        yield from part.sharing_modules()
    for name, value in vars(part).items():
        if name not in INTERNAL and not isinstance(value, Tensor):
            yield value


class Attributes:
    """The attributes of parts as they are when this is made: references, and what lists and dicts hold."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self._attributes: List[Tuple[dict, dict]] = []  # of each part, and a copy
        self._tensors: List[Tuple[dict, dict]] = []
        self._lists: List[Tuple[list, list]] = []
        self._dicts: List[Tuple[dict, dict]] = []
        for part in parts:
            now = vars(part)
            own = {name: value for name, value in now.items() if name not in INTERNAL}
            self._attributes.append((now, own))
            if isinstance(part, nn.Module):
                self._tensors += [(now[name], dict(now[name])) for name in TENSORS]
            for value in own.values():
                if type(value) is list:
                    self._lists.append((value, value.copy()))
                elif type(value) is dict:
                    self._dicts.append((value, value.copy()))

    def restore(self) -> None:
        for now, own in self._attributes:
            for name in now.keys() - own.keys() - INTERNAL:
                del now[name]
            now.update(own)
        for now, items in self._lists:
            now[:] = items
        for now, items in self._dicts:
            now.clear()
            now.update(items)
        self.restore_tensors()

    def restore_tensors(self) -> None:
        """Parameters and buffers of modules alone."""
        for now, items in self._tensors:
            now.clear()
            now.update(items)


class Modes(NamedTuple):
    """Of torch, which belong to the code that runs."""

    gradients: bool
    cached_casts: bool
    autocast: Tuple[Tuple[str, bool, torch.dtype], ...]  # device type, whether, to which type

    @staticmethod
    def now(device_types: Sequence[str]) -> "Modes":
        autocast = tuple((t, torch.is_autocast_enabled(t), torch.get_autocast_dtype(t)) for t in device_types)
        return Modes(torch.is_grad_enabled(), torch.is_autocast_cache_enabled(), autocast)

    def restore(self) -> None:
        torch.set_grad_enabled(self.gradients)
        torch.set_autocast_cache_enabled(self.cached_casts)
        for device_type, enabled, dtype in self.autocast:
            torch.set_autocast_enabled(device_type, enabled)
            torch.set_autocast_dtype(device_type, dtype)


class Surroundings(NamedTuple):
    attributes: Attributes
    random_state: RandomState
    modes: Modes

    def restore(self) -> None:
        self.attributes.restore()
        self.random_state.restore()
        self.modes.restore()
