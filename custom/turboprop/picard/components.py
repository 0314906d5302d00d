"""The modules that a system is made of, wherever it keeps them: also those that torch does not know as its children."""

from __future__ import annotations

from typing import Any, Iterator, List, Set

from torch import Tensor, nn
from torch.utils.data import Dataset

from threestudio.utils.base import Updateable

from .contract import SharesParameters

TORCH_INTERNAL = frozenset(vars(nn.Module())) - {"training"}  # what torch keeps in every module


def reachable_components(system: nn.Module) -> List[Any]:
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


def _held_by(component: Any) -> Iterator[Any]:
    if isinstance(component, nn.Module):
        yield from component._modules.values()
    if isinstance(component, SharesParameters):
        yield from component.sharing_modules()
    for name, value in vars(component).items():
        if name not in TORCH_INTERNAL and not isinstance(value, Tensor):
            yield value
