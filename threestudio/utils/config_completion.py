"""Values of a config that are found out before a run is built, by what plugins bring for it.

A plugin registers a function. It gets the whole config once that is read and checked, with the trainer's device set,
and may put values in the place of words that it knows, as `auto`. What it found, it can leave in the save folder.
"""

from __future__ import annotations

from collections.abc import Callable

from omegaconf import DictConfig

from threestudio.utils.saving import SaverMixin

Record = Callable[[SaverMixin], None]  # writes what was found into the save folder of a training run
Completion = Callable[[DictConfig], Record | None]  # changes the config; raises UserError for what cannot be found

_completions: list[Completion] = []


def register_config_completion(completion: Completion) -> Completion:
    """Adds a function to those that every config goes through, in the order of their registration."""
    _completions.append(completion)
    return completion


def complete_config(cfg: DictConfig) -> list[Record]:
    """Changes the config in place; returns what is to be called with the saver once there is a save folder."""
    found = [completion(cfg) for completion in _completions]
    return [record for record in found if record is not None]
