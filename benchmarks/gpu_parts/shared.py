"""What the parts share: their setting and their rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf


@dataclass
class Row:
    """One line of a table; `error` stands in the figures' place where the work did not go through."""

    what: str
    figures: dict[str, Any] = field(default_factory=dict)  # by column; numbers, or words
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Setting:
    device: torch.device
    tiny: bool  # sizes for a dry run on a CPU
    deadline: float  # of time.monotonic(): work begun after it is left out
    dtype: torch.dtype = torch.float32

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline


def guarded(what: str, setting: Setting, work: Callable[[], dict[str, Any]]) -> Row:
    """The row of one piece of work: its figures, or in one line why there are none."""
    if setting.late:
        return Row(what, error="left out: the part's time was over")
    try:
        return Row(what, work())
    except Exception as error:  # of any kind: the other rows do not hang on this one
        return Row(what, error=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    finally:
        if setting.device.type == "cuda" and torch.cuda.is_available():
            torch.cuda.empty_cache()


def existing_keys(config: DictConfig, wanted: dict[str, Any]) -> list[str]:
    """Overrides for those of the keys that the config has as plain values."""
    found = {key: OmegaConf.select(config, key, throw_on_missing=False) for key in wanted}
    return [
        f"{key}={value}"
        for key, value in wanted.items()
        if found[key] is not None and (isinstance(value, list) or not OmegaConf.is_config(found[key]))
    ]
