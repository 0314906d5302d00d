"""What a slot finds around it and another slot changes: attributes of components, random state, modes of torch."""

from __future__ import annotations

from typing import Any, List, NamedTuple, Sequence, Tuple

import torch
from torch import nn

from ..components import TORCH_INTERNAL
from ..random_state import RandomState

# Of what torch keeps in a module; what hangs on its calls (hooks) is no step's to change.
TENSORS = ("_parameters", "_buffers")


class AttributeSnapshot:
    """The attributes of components as they are when this is made: references, and what lists and dicts hold."""

    def __init__(self, components: Sequence[Any]) -> None:
        self._attributes: List[Tuple[dict, dict]] = []  # of each component, and a copy
        self._contents: List[Tuple[Any, Any]] = []  # lists and dicts among them, and a copy
        self._tensors: List[Tuple[dict, dict]] = []
        for component in components:
            now = vars(component)
            own = {name: value for name, value in now.items() if name not in TORCH_INTERNAL}
            self._attributes.append((now, own))
            self._contents += [(value, value.copy()) for value in own.values() if type(value) in (list, dict)]
            if isinstance(component, nn.Module):
                self._tensors += [(now[name], dict(now[name])) for name in TENSORS]

    def restore(self) -> None:
        for now, own in self._attributes:
            for name in now.keys() - own.keys() - TORCH_INTERNAL:
                del now[name]
            now.update(own)
        for now, items in self._contents:
            _refill(now, items)
        self.restore_tensors()

    def restore_tensors(self) -> None:
        """Brings back parameters and buffers of modules alone."""
        for now, items in self._tensors:
            _refill(now, items)


def _refill(container: Any, items: Any) -> None:
    container.clear()
    (container.extend if isinstance(container, list) else container.update)(items)


class TorchModes(NamedTuple):
    """Modes of torch that belong to the code that runs."""

    gradients: bool
    cached_casts: bool
    autocast: Tuple[Tuple[str, bool, torch.dtype], ...]  # device type, whether, to which type

    @staticmethod
    def now(device_types: Sequence[str]) -> "TorchModes":
        autocast = tuple((t, torch.is_autocast_enabled(t), torch.get_autocast_dtype(t)) for t in device_types)
        return TorchModes(torch.is_grad_enabled(), torch.is_autocast_cache_enabled(), autocast)

    def restore(self) -> None:
        torch.set_grad_enabled(self.gradients)
        torch.set_autocast_cache_enabled(self.cached_casts)
        for device_type, enabled, dtype in self.autocast:
            torch.set_autocast_enabled(device_type, enabled)
            torch.set_autocast_dtype(device_type, dtype)


class ContextSnapshot(NamedTuple):
    attributes: AttributeSnapshot
    random_state: RandomState
    modes: TorchModes

    def restore(self) -> None:
        self.attributes.restore()
        self.random_state.restore()
        self.modes.restore()
