"""The single picture that a config makes an object of, for what is found out about it before a run is built."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

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


def automatic_keys(node: Any, ending: str) -> Iterator[tuple[DictConfig, str]]:
    """Where a config says auto for a key whose name ends so: the node and the name."""
    for name in list(node) if isinstance(node, DictConfig) else ():
        value = None if OmegaConf.is_missing(node, name) else node[name]
        if value == AUTO and str(name).endswith(ending):
            yield node, name
        else:
            yield from automatic_keys(value, ending)


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


def single_picture(guidance: Any, key: str) -> Tensor:
    """The framed picture [S, S, 4], straight alpha, that a guidance goes by. Raises UserError for several pictures,
    which have cameras of their own."""
    source = local_path(guidance.cond_image_path)
    if source.is_dir() or source.suffix.lower() == ".json":
        raise UserError(f"{key}: auto is for a single picture; those of {source} have their cameras, leave the key out")
    with key_of_errors("guidance"):
        (picture,) = input_pictures(guidance).pictures
    return picture


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


def known_place(cfg: DictConfig) -> PicturePlace:
    """The place of the picture, as far as the config says it: auto is not known."""
    elevation, azimuth = (cfg.data[f"default_{name}_deg"] for name in ("elevation", "azimuth"))
    known = (None if value == AUTO else value for value in (elevation, azimuth))
    return PicturePlace(*known, cfg.data.default_camera_distance, cfg.data.default_fovy_deg)
