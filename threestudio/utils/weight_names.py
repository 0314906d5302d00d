"""Weights under another program's names: hooks that give them ours before a module loads them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

# A pattern of a whole name, and its new name: as in re.sub, or a function of the match, or None for what is left out.
Rule = tuple[str, str | Callable[[re.Match[str]], str] | None]
Hook = Callable[..., None]


def renaming_hook(rules: Sequence[Rule]) -> Hook:
    """A hook for `register_load_state_dict_pre_hook`: the first rule that a name under the module fits renames it.

    A weight that is there under its new name already stays, and the other is left as it is.
    """
    compiled = [(re.compile(pattern), new) for pattern, new in rules]

    def rename(module: nn.Module, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            for pattern, new in compiled:
                match = pattern.fullmatch(key, len(prefix))
                if match is None:
                    continue
                if new is None:
                    del state_dict[key]
                    break
                name = prefix + (match.expand(new) if isinstance(new, str) else new(match))
                if name not in state_dict:
                    state_dict[name] = state_dict.pop(key)
                break

    return rename


def with_activations_counted(module: nn.Module, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
    """A hook: layers 0, 2, 4 ... of a network whose activations have numbers of their own are layers 0, 1, 2 ...

    threestudio's networks are such. Names that are no such row stay as they are.
    """
    pattern = re.compile(r"layers\.(\d+)\.(.+)")
    found = [(key, pattern.fullmatch(key, len(prefix))) for key in state_dict if key.startswith(prefix)]
    named = [(key, int(match[1]), match[2]) for key, match in found if match is not None]
    numbers = sorted({number for _, number, _ in named})
    if len(numbers) < 2 or numbers != list(range(0, 2 * len(numbers), 2)):
        return
    for key, number, rest in sorted(named, key=lambda entry: entry[1]):
        state_dict[f"{prefix}layers.{number // 2}.{rest}"] = state_dict.pop(key)
