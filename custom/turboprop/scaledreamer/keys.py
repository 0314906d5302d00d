"""Keys of another project's configs, read as ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from threestudio.utils.errors import UserError, with_suggestion

ACTIVATIONS_OF_NETWORKS = {"otype": "VanillaMLP", "activation": "ReLU", "output_activation": "none"}


def set_given(cfg: Any, values: Mapping[str, Any]) -> None:
    """Sets each of our keys that has a value other than None."""
    for key, value in values.items():
        if value is not None:
            OmegaConf.update(cfg, key, value)


def only(key: str, value: Any, *accepted: Any) -> None:
    """Raises UserError for a value that this project has no counterpart of."""
    if value not in accepted:
        known = " or ".join("null" if choice is None else str(choice).lower() for choice in accepted)
        raise UserError(f"{key}: expected {known}, got {value!r}")


def nested(where: str, given: Mapping[str, Any] | None, known: tuple[str, ...]) -> dict[str, Any]:
    """A nested config as a plain dict with all `known` keys, None where one is not given.

    Raises UserError for an unknown key.
    """
    given = dict(given or {})
    for key in given:
        if key not in known:
            raise UserError(with_suggestion(f"unknown key '{where}.{key}'", str(key), known))
    return {key: given.get(key) for key in known}


def hidden_layers_of(where: str, widths: Any, outputs: int | None = None) -> tuple[int, int, int]:
    """A network's widths behind its input, [64, 64, 3] say: width of its hidden layers, their number, its outputs.

    Raises UserError where there is no hidden layer, or they differ, or the outputs are others than `outputs`.
    """
    widths = [int(width) for width in widths]
    *hidden, last = widths
    if not hidden or len(set(hidden)) > 1:
        raise UserError(f"{where}: expected hidden layers of one width and the outputs, such as [64, 3], got {widths}")
    if outputs is not None and last != outputs:
        raise UserError(f"{where}: expected {outputs} as the last number, got {widths}")
    return hidden[0], len(hidden), last


def network_keys(where: str, given: Mapping[str, Any] | None) -> tuple[int | None, int | None]:
    """n_neurons and n_hidden_layers of a network's config. Raises UserError for another kind of network than ours."""
    keys = nested(where, given, (*ACTIVATIONS_OF_NETWORKS, "n_neurons", "n_hidden_layers"))
    for key, expected in ACTIVATIONS_OF_NETWORKS.items():
        if keys[key] is not None:
            only(f"{where}.{key}", keys[key], expected)
    return keys["n_neurons"], keys["n_hidden_layers"]
