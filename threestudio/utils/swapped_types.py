"""A part of a config that is given another registered name: keys that the old one alone knows go with it.

So `system.guidance_type=...` swaps a guidance in a config that has keys of the old one. A key that neither knows stays,
and is an error later.
"""

from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import threestudio
from threestudio.utils.errors import UserError

_ENDING = "_type"


def leave_out_keys_of_old_types(below: DictConfig, above: DictConfig, path: str = "") -> None:
    """Takes from `below`, in place, what a type that `above` exchanges leaves behind; says which keys."""
    for name in [str(key) for key in above if str(key).endswith(_ENDING)]:
        part = name.removesuffix(_ENDING)
        old, new, block = _text(below, name), _text(above, name), _block(below, part)
        if old is None or new is None or old == new or block is None:
            continue
        old_keys, new_keys = _known_keys(old), _known_keys(new)
        if old_keys is None or new_keys is None:
            continue
        gone = [key for key in block if key in old_keys and key not in new_keys]
        for key in gone:
            del block[key]
        if gone:
            full = f"{path}.{part}".lstrip(".")
            threestudio.info(f"{full}: left out {', '.join(gone)}, which {old} knows and {new} does not")
    if not path and (system := _block(below, "system")) is not None:
        if (over := _block(above, "system")) is not None:
            leave_out_keys_of_old_types(system, over, "system")


def _text(config: DictConfig, key: str) -> str | None:
    try:
        value = config.get(key)
    except OmegaConfBaseException:  # an interpolation of what another file has
        return None
    return value if isinstance(value, str) and not OmegaConf.is_missing(config, key) else None


def _block(config: DictConfig, key: str) -> DictConfig | None:
    """The mapping at a key; not one that stands elsewhere, behind an interpolation."""
    if key not in config or OmegaConf.is_interpolation(config, key):
        return None
    value = config[key]
    return value if isinstance(value, DictConfig) else None


def _known_keys(name: str) -> set[str] | None:
    """The keys of a registered class's config; None where it has none that is known, as of an unknown name."""
    try:
        config_class: Any = getattr(threestudio.find(name), "Config", None)
    except UserError:
        return None
    return {entry.name for entry in fields(config_class)} if is_dataclass(config_class) else None
