"""Entries of an encoding's or a network's config, checked where they are read.

Such a config is a dictionary in the form of tiny-cuda-nn. Errors begin with the entry's name; `errors_under` puts the
key of the whole config before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from threestudio.utils.config import config_path
from threestudio.utils.errors import UserError, with_suggestion
from threestudio.utils.ops import get_activation
from threestudio.utils.value_checks import is_number, shown

Config = Mapping[str, Any]


def plain(config: Config) -> dict[str, Any]:
    return OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else dict(config)


@contextmanager
def errors_under(config: Config, otherwise: str) -> Iterator[None]:
    """Puts the full key of a config, or `otherwise` where it stands in none, before the entry that an error names."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{config_path(config) or otherwise}.{error}") from error


def check_known(config: Config, known: Iterable[str]) -> None:
    """Raises UserError for an entry of another name."""
    for name in config:
        if name not in known:
            raise UserError(with_suggestion(f"{name}: unknown key", str(name), known))


def whole_number(config: Config, name: str, default: int | None, least: int) -> int:
    """An entry's value; None as the default means that there is none. Raises UserError for any other value."""
    value = config.get(name, default)
    if value is None:
        raise UserError(f"{name}: a value is required")
    if not is_number(value) or value != int(value) or value < least:
        raise UserError(f"{name}: expected a whole number from {least}, got {shown(value)}")
    return int(value)


def number(config: Config, name: str, default: float) -> float:
    """An entry's value. Raises UserError for what is no number."""
    value = config.get(name, default)
    if not is_number(value):
        raise UserError(f"{name}: expected a number, got {shown(value)}")
    return float(value)


def activation(config: Config, name: str, default: str | None) -> Callable[[Tensor], Tensor]:
    """The function of an entry's name. Raises UserError where there is none."""
    return get_activation(config.get(name, default), name)
