"""The picture that a config makes an object of, for what is found out about it before a run is built."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

import threestudio
from threestudio.utils.config import parse_structured
from threestudio.utils.errors import MissingFileError, UserError, key_of_errors
from threestudio.utils.picture_files import local_path

from ..teachers.pretrained import is_multi_view
from .guidance import NovelViewGuidance, input_pictures
from .place_estimate import PicturePlace
from .unified_guidance import Zero123UnifiedGuidance

AUTO = "auto"


class Angles(NamedTuple):
    """Where a camera stands that looks at the origin, in degrees."""

    elevation: float
    azimuth: float


def automatic_keys(node: Any, ending: str) -> Iterator[tuple[DictConfig, str]]:
    """Where a config says auto for a key whose name ends so: the node and the name."""
    for name in list(node) if isinstance(node, DictConfig) else ():
        value = None if OmegaConf.is_missing(node, name) else node[name]
        if value == AUTO and str(name).endswith(ending):
            yield node, name
        else:
            yield from automatic_keys(value, ending)


def put_angles(cfg: DictConfig, angles: Angles) -> list[str]:
    """Puts a camera's angles wherever data or system say auto for one. Returns what was put, by the names of `data`."""
    put = []
    for name, value in zip(("elevation_deg", "azimuth_deg"), angles):
        keys = [*automatic_keys(cfg.data, name), *automatic_keys(cfg.system, name)]
        for node, key in keys:
            node[key] = value
        if keys:
            put.append(f"data.default_{name}: {value:.1f}")
    return put


def novel_view_guidance(cfg: DictConfig, key: str, instead: str) -> tuple[type, Any]:
    """The class and the checked config of the guidance that has a novel-view model; 0 stands for its angles. Raises
    UserError where there is none; the message names `key`, whose value is auto, and says what to do `instead`."""
    system = copy.deepcopy(cfg).system
    for part in ("guidance", "guidance_3d"):
        name = system.get(f"{part}_type")
        kind = threestudio.find(name) if name else None
        if kind is not None and issubclass(kind, (NovelViewGuidance, Zero123UnifiedGuidance)) and part in system:
            system[part].cond_elevation_deg = system[part].cond_azimuth_deg = 0.0
            return kind, parse_structured(kind.Config, system[part])
    raise UserError(f"{key}: auto needs a guidance with a novel-view model, such as zero123-dino-guidance; {instead}")


def first_picture(guidance: Any) -> tuple[Tensor, Angles | None]:
    """The first picture [S, S, 4], straight alpha, that a guidance goes by; framed, where it is the only one.

    Several pictures have cameras of their own: beside the first one, where its camera stands.
    """
    with key_of_errors("guidance"):
        views = input_pictures(guidance)
    source = local_path(guidance.cond_image_path)
    if not source.is_dir() and source.suffix.lower() != ".json":
        return views.pictures[0], None
    x, y, z = views.c2w[0, :3, 3].tolist()
    return views.pictures[0], Angles(math.degrees(math.atan2(z, math.hypot(x, y))), math.degrees(math.atan2(y, x)))


def camera_teacher_of(cfg: DictConfig) -> str | None:
    """The model of `system.guidance` where that is a text teacher which is told cameras; reads no weights."""
    name, guidance = cfg.system.get("guidance_type"), cfg.system.get("guidance")
    if not name or not isinstance(guidance, DictConfig):
        return None
    if issubclass(threestudio.find(name), (NovelViewGuidance, Zero123UnifiedGuidance)):
        return None
    folder = guidance.get("pretrained_model_name_or_path")
    try:
        return folder if folder and is_multi_view(folder) else None
    except MissingFileError:  # whoever builds the guidance says so
        return None


def refuse_azimuth_without_teacher(cfg: DictConfig) -> None:
    """Raises UserError where an azimuth is to be found and no teacher is told captions and cameras."""
    automatic = any(list(automatic_keys(node, "azimuth_deg")) for node in (cfg.data, cfg.system))
    if automatic and camera_teacher_of(cfg) is None:
        raise UserError(
            "data.default_azimuth_deg: auto needs a text teacher that is told the camera in system.guidance, as "
            "magic123-mini.yaml has; give the azimuth in degrees"
        )


def known_place(cfg: DictConfig) -> PicturePlace:
    """The place of the picture, as far as the config says it: auto is not known. Raises UserError for other words."""

    def degrees(key: str) -> float | None:
        value = cfg.data[key]
        if value == AUTO:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UserError(f"data.{key}: expected degrees or {AUTO}, got {value!r}")
        return float(value)

    angles = degrees("default_elevation_deg"), degrees("default_azimuth_deg")
    return PicturePlace(*angles, float(cfg.data.default_camera_distance), float(cfg.data.default_fovy_deg))
