"""Hand-over between stages: the geometry of a finished run becomes another stage's start."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import threestudio
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.isosurface import EmptyFieldError
from threestudio.utils.config import load_config
from threestudio.utils.errors import UserError, with_suggestion
from threestudio.utils.misc import cleanup, find_last_path, load_module_weights

KEY = "system.geometry_convert_from"


def converted_geometry(
    convert_from: str, geometry_type: str, geometry_config: Any, inherit_texture: bool, override: Any
) -> BaseGeometry:
    """A geometry of `geometry_type` from the one in the checkpoint `convert_from`.

    Args:
        convert_from: `<trial>/ckpts/<name>.ckpt`; the run's config is at `<trial>/configs/parsed.yaml`. May have LAST.
        geometry_config: of the new geometry.
        inherit_texture: whether encoding and feature network are taken over.
        override: keys of the previous geometry's config to set otherwise, e.g. isosurface_threshold.
    Raises UserError, naming the key or the checkpoint, where a file is missing or broken, the configs do not fit, or
    the previous geometry has no surface.
    """
    geometry_class = threestudio.find(geometry_type)
    checkpoint = _existing(convert_from)
    previous = _previous_geometry(checkpoint, override)
    try:
        converted = geometry_class.create_from(previous, geometry_config, copy_net=inherit_texture)
    except EmptyFieldError as error:
        raise UserError(
            f"{KEY}: {checkpoint} has no surface to hand over: {error}; "
            "set system.geometry_convert_override.isosurface_threshold to a value within that range, or train that "
            "stage longer"
        ) from error
    except TypeError as error:
        raise UserError(f"{KEY}: {checkpoint}: {error}") from error
    del previous
    cleanup()
    return converted


def _existing(convert_from: str) -> str:
    try:
        checkpoint = find_last_path(convert_from)
    except OSError as error:
        raise UserError(f"{KEY}: {error}") from error
    if not Path(checkpoint).is_file():
        raise UserError(f"{KEY}: checkpoint not found: {checkpoint}")
    return checkpoint


def _previous_geometry(checkpoint: str, override: Any) -> BaseGeometry:
    """The geometry of a checkpoint, with its weights."""
    parsed = Path(checkpoint).parent.parent / "configs" / "parsed.yaml"
    if not parsed.is_file():
        raise UserError(f"{KEY}: {checkpoint} has no config beside it; expected {parsed}")
    try:
        system = load_config(str(parsed)).system
    except (ValueError, OSError) as error:
        raise UserError(f"{KEY}: cannot read {parsed}: {error}") from error
    name = system.get("geometry_type")
    if not name:
        raise UserError(f"{KEY}: {parsed} is not the config of a run with a geometry: no system.geometry_type")
    try:
        weights, epoch, global_step = load_module_weights(checkpoint, module_name="geometry", map_location="cpu")
        geometry_class = threestudio.find(name)
        config = _with_override(geometry_class, system.get("geometry", {}), override)
        _forget_the_start(geometry_class, config)
        geometry = geometry_class(config)
        result = geometry.load_state_dict(weights, strict=False)
    except (ValueError, OSError) as error:
        raise UserError(error if str(error).startswith("system.") else f"{KEY}: {error}") from error
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        raise UserError(
            f"{KEY}: the weights of {checkpoint} do not fit {parsed} with system.geometry_convert_override: {error}"
        ) from error
    if result.missing_keys:
        raise UserError(
            f"{KEY}: {checkpoint} lacks weights that {parsed} with system.geometry_convert_override asks for: "
            f"{len(result.missing_keys)}, the first geometry.{result.missing_keys[0]}"
        )
    geometry.do_update_step(epoch, global_step, on_load_weights=True)
    return geometry


def _forget_the_start(geometry_class: type, config: DictConfig) -> None:
    """What it started from is in its weights by now, and those files may be gone."""
    for key in ("shape_init", "weights"):
        field = geometry_class.Config.__dataclass_fields__.get(key)
        if field is not None and field.default is None:
            config[key] = None


def _with_override(geometry_class: type, config: Any, override: Any) -> DictConfig:
    merged = OmegaConf.create(
        OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else dict(config)
    )
    known = geometry_class.Config.__dataclass_fields__
    for key, value in dict(override).items():
        if key not in known:
            message = f"system.geometry_convert_override: unknown key '{key}' of the previous geometry"
            raise UserError(with_suggestion(message, key, known))
        merged[key] = value
    return merged
