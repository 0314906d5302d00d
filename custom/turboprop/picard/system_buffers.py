"""The buffers of a system as auxiliaries of the engine: put in, and looked at for what a step has done to them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Dict, Iterator, Tuple

import torch
from torch import nn

from .contract import AccumulatesBuffers
from .engine.state import Change, Changes, Tensors

LARGEST = 2**20  # elements; larger buffers are constants, which no slot gets a copy of


class SystemBuffers:
    """The buffers of a module by their full names, as they are when this is made."""

    def __init__(self, module: nn.Module) -> None:
        self._places: Dict[str, Tuple[nn.Module, str]] = {}
        self._kinds: Dict[str, str] = {}
        for prefix, owner in module.named_modules():
            kinds = owner.accumulated_buffers if isinstance(owner, AccumulatesBuffers) else {}
            for key, value in owner._buffers.items():
                if value is not None:
                    name = f"{prefix}.{key}" if prefix else key
                    self._places[name] = (owner, key)
                    if key in kinds:
                        self._kinds[name] = kinds[key]
        self.real = self.now()

    def now(self) -> Tensors:
        return {name: owner._buffers[key] for name, (owner, key) in self._places.items()}

    def install(self, values: Tensors) -> None:
        for name, value in values.items():
            owner, key = self._places[name]
            owner._buffers[key] = value

    def auxiliaries(self) -> Tensors:
        """What a step may change and the next one may see."""
        small = {name: value for name, value in self.real.items() if value.numel() <= LARGEST}
        return {name: value for name, value in small.items() if name not in self._kinds}

    def slot_values(self, auxiliaries: Tensors) -> Tensors:
        """Copies that a step can change; those that steps add to begin at 0, so that they end as what the step adds."""
        values = {name: value.clone() for name, value in auxiliaries.items()}
        return {**values, **{name: torch.zeros_like(self.real[name]) for name in self._kinds}}

    def marks(self) -> Dict[str, Tuple[int, int]]:
        """What differs later where a buffer has been changed or exchanged in between."""
        return {name: (id(value), value._version) for name, value in self.now().items()}

    def changes_since(self, marks: Dict[str, Tuple[int, int]]) -> Changes:
        """Raises ValueError for a buffer that is too large to be copied for each slot."""
        found: Changes = {}
        for name, value in self.now().items():
            if (id(value), value._version) == marks[name]:
                continue
            if self.real[name].numel() > LARGEST and name not in self._kinds:
                raise ValueError(
                    f"picard: a training step changes the buffer {name} of {value.numel():,} elements; "
                    f"at most {LARGEST:,} can be followed"
                )
            found[name] = Change(self._kinds.get(name, "replace"), value)
        return found

    def split(self, changes: Changes) -> Tuple[Changes, Changes]:
        """Changes of the state, and changes of what steps add to."""
        added = {name: change for name, change in changes.items() if name in self._kinds}
        return {name: change for name, change in changes.items() if name not in added}, added

    def apply(self, changes: Changes) -> None:
        """Makes accepted changes to the real buffers."""
        self.install({name: change.after(self.now()[name]) for name, change in changes.items()})


@contextmanager
def buffers_left_alone(system: nn.Module) -> Iterator[None]:
    """Within it, no `update_step` runs that only changes buffers, such as those of occupancy grids."""
    parts = [part for part in system.modules() if _changes_buffers_alone(type(part))]
    for part in parts:
        part.update_step = _do_nothing  # of this object; its class has its own still
    try:
        yield
    finally:
        for part in parts:
            del part.update_step


def _changes_buffers_alone(kind: type) -> bool:
    owner = next((base for base in kind.__mro__ if "update_step" in vars(base)), None)
    return owner is not None and vars(owner).get("update_step_changes_buffers_alone", False)


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    """In the place of an `update_step`."""
