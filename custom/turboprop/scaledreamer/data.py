"""Cameras of many prompts under ScaleDreamer's names, with its keys beside ours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import threestudio
from threestudio.utils.errors import UserError

from ..amortized.data import MultiPromptCameraConfig, MultiPromptCameraDataModule
from ..multi_view.view_sets import ViewSets
from ..teachers.prompts.library import PromptLibrary
from .prompts import LibraryKeys, named_library


@dataclass
class ScaleDreamerCameraConfig(MultiPromptCameraConfig, LibraryKeys):
    dim_gaussian: int | None = None  # our noise_dim
    eval_prompt: str | None = None  # a prompt to show and export in the test split's place; it may be new
    target_prompt: str | None = None  # to interpolate to: not available
    eval_fix_camera: int | None = None  # a single view of it: not available


@threestudio.register("multiprompt-camera-datamodule")
class ScaleDreamerCameraDataModule(MultiPromptCameraDataModule):
    """Single views."""

    config_class: Any = ScaleDreamerCameraConfig

    def chosen_prompts(self) -> PromptLibrary:
        cfg = self.cfg
        for key in ("target_prompt", "eval_fix_camera"):
            if cfg[key] is not None:
                raise UserError(f"data.{key}: pictures between two prompts are not available, expected null")
        if cfg.dim_gaussian is not None:
            cfg.noise_dim = cfg.dim_gaussian
        library = named_library(cfg, "data")
        return library if cfg.eval_prompt is None else replace(library, test=[cfg.eval_prompt])


@dataclass
class ScaleDreamerMultiViewConfig(ScaleDreamerCameraConfig):
    """`batch_size` counts views, n_view of them a prompt."""

    n_view: int = 1  # cameras of a set
    view_sets: bool = True  # false: each camera is drawn by itself
    relative_radius: bool = True  # camera_distance_range is in units of 1 / tan(fovy / 2)
    zoom_range: tuple[float, float] = (1.0, 1.0)  # factors on the field of view once the distance is set


@threestudio.register("multiprompt-multiview-camera-datamodule")
class ScaleDreamerMultiViewDataModule(ScaleDreamerCameraDataModule):
    """Sets of views."""

    config_class = ScaleDreamerMultiViewConfig

    def view_sets(self) -> ViewSets | None:
        sets = ViewSets(self.cfg.n_view, self.cfg.relative_radius, tuple(self.cfg.zoom_range))
        return sets if self.cfg.view_sets else None

    def views_of_stages(self) -> list[int]:
        sets = ViewSets(self.cfg.n_view)
        for views in self.batch_sizes():
            sets.sets_in(views)
        return self.batch_sizes()
