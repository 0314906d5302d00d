"""Base classes of everything that is registered, and the lifecycle of a step.

Each step, the host calls `update_step` on everything that it reaches from the system, children
before their owner, and each thing exactly once however many paths lead to it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from threestudio.utils.config import parse_structured
from threestudio.utils.errors import UserError
from threestudio.utils.misc import get_device, load_module_weights
from threestudio.utils.weight_loading import loaded

_visited: ContextVar[set[int] | None] = ContextVar("visited", default=None)


@contextmanager
def _visit(*already_visited: Any) -> Iterator[set[int]]:
    """The ids of what this walk has updated; nested walks share their outermost walk's set."""
    current = _visited.get()
    if current is not None:
        current.update(id(item) for item in already_visited)
        yield current
        return
    token = _visited.set({id(item) for item in already_visited})
    try:
        yield _visited.get()
    finally:
        _visited.reset(token)


@contextmanager
def already_updated(*items: Any) -> Iterator[None]:
    """Within the block, a walk leaves these out."""
    with _visit(*items):
        yield


def _updateables_in(value: Any, seen: set[int]) -> Iterator["Updateable"]:
    """The nearest Updateables in a value: itself, or those in a container or a plain module."""
    if isinstance(value, Updateable):
        yield value
        return
    if isinstance(value, nn.Module):
        children = value._modules.values()
    elif isinstance(value, dict):
        children = value.values()
    elif isinstance(value, (list, tuple)):
        children = value
    else:
        return
    if id(value) in seen:  # a container may contain itself
        return
    seen.add(id(value))
    for child in children:
        yield from _updateables_in(child, seen)


class Updateable:
    """Something that changes with the step: override `update_step` and `update_step_end`."""

    def _updateable_children(self) -> Iterator["Updateable"]:
        # Stored attributes only: a property may compute, raise, or show a child a second time.
        seen: set[int] = set()
        for name, value in list(vars(self).items()):
            if name not in ("_parameters", "_buffers"):
                yield from _updateables_in(value, seen)

    def do_update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Updates everything reached from here, then this; each thing once a walk."""
        with _visit() as visited:
            if id(self) in visited:
                return
            visited.add(id(self))
            for child in self._updateable_children():
                child.do_update_step(epoch, global_step, on_load_weights=on_load_weights)
            self.update_step(epoch, global_step, on_load_weights=on_load_weights)

    def do_update_step_end(self, epoch: int, global_step: int) -> None:
        """Calls update_step_end of this object and its children, each once, at the end of a step."""
        with _visit() as visited:
            if id(self) in visited:
                return
            visited.add(id(self))
            for child in self._updateable_children():
                child.do_update_step_end(epoch, global_step)
            self.update_step_end(epoch, global_step)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Called before each step. With `on_load_weights`, right after weights were loaded: the
        module may then lie on another device than the rest."""

    def update_step_end(self, epoch: int, global_step: int) -> None:
        """Called after each step, the optimizer's update included."""


class UpdateableInParts(Updateable):
    """A dataset whose step may have several batches: accumulated gradients, several processes."""

    def update_part(self, part: int, parts: int) -> None:
        """The next batch is number `part`, from 0, of the `parts` of this step."""
        raise TypeError(f"{type(self).__name__} does not define update_part")


def update_if_possible(module: Any, epoch: int, global_step: int) -> None:
    if isinstance(module, Updateable):
        module.do_update_step(epoch, global_step)


def update_end_if_possible(module: Any, epoch: int, global_step: int) -> None:
    if isinstance(module, Updateable):
        module.do_update_step_end(epoch, global_step)


class BaseObject(Updateable):
    """A registered thing whose weights, if it has any, stay out of checkpoints: not a module."""

    @dataclass
    class Config:
        pass

    cfg: Config

    def __init__(self, cfg: Any = None, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.cfg = parse_structured(self.Config, cfg)
        self.device = get_device()
        self.configure(*args, **kwargs)

    def configure(self, *args: Any, **kwargs: Any) -> None:
        """Builds the thing from `self.cfg`."""


class BaseModule(nn.Module, Updateable):
    """A registered torch module."""

    @dataclass
    class Config:
        weights: str | None = None  # "path.ckpt:module_name" to start from; default none

    cfg: Config

    def __init__(self, cfg: Any = None, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.cfg = parse_structured(self.Config, cfg)
        self.device = get_device()
        # A module without parameters still has a tensor that tells where the module lies.
        self.register_buffer("_dummy", torch.zeros(0), persistent=False)
        self.configure(*args, **kwargs)
        if self.cfg.weights:
            self._load_weights(self.cfg.weights)

    def _load_weights(self, source: str) -> None:
        path, separator, module_name = source.rpartition(":")
        if not separator:
            raise UserError(f"weights: expected 'path.ckpt:module_name', got '{source}'")
        state_dict, epoch, global_step = load_module_weights(path, module_name=module_name, map_location="cpu")
        loaded(self, state_dict, f"weights: {path}", strict=True)
        self.do_update_step(epoch, global_step, on_load_weights=True)

    def configure(self, *args: Any, **kwargs: Any) -> None:
        """Builds the module from `self.cfg`."""
