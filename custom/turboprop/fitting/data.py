"""`turboprop-posed-views-datamodule`: pictures with known cameras to fit to, and held-out ones to measure by."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

import threestudio
from threestudio.data.cameras import batch_of_poses, unit_focal_directions
from threestudio.data.stepwise import StepwiseDataModule
from threestudio.utils.config import parse_structured
from threestudio.utils.errors import UserError, errors_begin_with
from threestudio.utils.value_checks import check_at_least, is_number_list

from ..world.captions import parse_caption
from .posed_views import PosedViews, folder_views, spiral_c2w, world_views
from .transforms_file import read_frames


@dataclass
class PosedViewsConfig:
    caption: str = ""  # of one of the world's objects, which is rendered; or give train_file and test_file
    train_file: str = ""  # a transforms.json with pictures, see docs/fitting.md
    test_file: str = ""  # the same, for held-out views
    size: int = 64  # side of all pictures, pixels
    batch_size: int = 4  # views a step
    n_train_views: int = 64  # of the world's object, on a spiral over the sphere
    n_test_views: int = 8  # held out, on a spiral of their own
    elevation_range: Any = field(default_factory=lambda: [-30.0, 80.0])  # of both, degrees
    camera_distance: float = 2.7  # of both, world units
    fovy_deg: float = 40.0  # of both, vertical field of view, degrees
    random_background: bool = True  # a random plain colour behind each training view: what is empty has to be empty
    eval_background: Any = field(default_factory=lambda: [0.55, 0.55, 0.55])  # behind held-out views, sRGB in [0, 1]


def check_config(cfg: PosedViewsConfig) -> None:
    """Raises UserError with the key that is wrong, or with the file that it names."""
    if bool(cfg.caption) == bool(cfg.train_file or cfg.test_file):
        raise UserError('data: expected caption, or train_file and test_file; data.caption="" leaves the caption out')
    if not cfg.caption and not (cfg.train_file and cfg.test_file):
        raise UserError("data: expected both train_file and test_file")
    for key in ("size", "batch_size", "n_train_views", "n_test_views"):
        check_at_least(f"data.{key}", cfg[key], 1)
    given = list(cfg.elevation_range) if is_number_list(cfg.elevation_range) else []
    if len(given) != 2 or not -90 < given[0] < given[1] < 90:
        raise UserError(f"data.elevation_range: expected two angles within +-90 degrees, got {cfg.elevation_range}")
    background = list(cfg.eval_background) if is_number_list(cfg.eval_background) else []
    if len(background) != 3 or not all(0 <= value <= 1 for value in background):
        raise UserError(f"data.eval_background: expected three numbers in [0, 1], got {cfg.eval_background}")
    if not 0 < cfg.fovy_deg < 180:
        raise UserError(f"data.fovy_deg: expected an angle between 0 and 180 degrees, got {cfg.fovy_deg:g}")
    if not cfg.camera_distance > 0:
        raise UserError(f"data.camera_distance: expected more than 0, got {cfg.camera_distance:g}")
    if cfg.caption:
        with errors_begin_with("data.caption"):
            parse_caption(cfg.caption)
    else:
        for file in dict.fromkeys((cfg.train_file, cfg.test_file)):
            read_frames(file)


def views_of(cfg: PosedViewsConfig, split: str) -> PosedViews:
    """The pictures of `split`, train or test."""
    if not cfg.caption:
        return folder_views(cfg.train_file if split == "train" else cfg.test_file, cfg.size)
    count, turn = (cfg.n_train_views, 0.0) if split == "train" else (cfg.n_test_views, 77.0)
    c2w = spiral_c2w(count, tuple(cfg.elevation_range), cfg.camera_distance, turn)
    return world_views(parse_caption(cfg.caption), c2w, math.radians(cfg.fovy_deg), cfg.size)


def batch_of(views: PosedViews, background: Tensor) -> dict[str, Any]:
    """What renderers, guidances and fits ask of B posed pictures; background [B, 3]."""
    size = views.rgb.shape[1]
    return {
        **batch_of_poses(views.c2w, views.fovy, unit_focal_directions(size, size)),
        "bg_color": background,
        "target_rgb": views.on(background),
        "target_coverage": views.coverage,
    }


class PosedViewsIterableDataset(IterableDataset):
    """Endless batches of random views."""

    def __init__(self, cfg: Any, views: PosedViews) -> None:
        self.cfg, self.views = cfg, views

    def __iter__(self):
        while True:
            yield {}

    def collate(self, batch: Any) -> dict[str, Any]:
        chosen = torch.randperm(len(self.views))[: self.cfg.batch_size]
        background = torch.tensor(list(self.cfg.eval_background)).expand(len(chosen), 3)
        if self.cfg.random_background:
            background = torch.rand(len(chosen), 3)
        return batch_of(self.views[chosen], background)


class HeldOutViewsDataset(Dataset):
    """One view an item."""

    def __init__(self, cfg: Any, views: PosedViews) -> None:
        self.cfg, self.views = cfg, views

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> dict[str, Any]:
        background = torch.tensor(list(self.cfg.eval_background))[None]
        return {"index": torch.tensor([index]), **batch_of(self.views[[index]], background)}

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        (item,) = items
        return item


@threestudio.register("turboprop-posed-views-datamodule")
class PosedViewsDataModule(StepwiseDataModule):
    def __init__(self, cfg: Any = None) -> None:
        super().__init__()
        self.cfg = parse_structured(PosedViewsConfig, cfg)
        check_config(self.cfg)

    def setup(self, stage: str | None = None) -> None:
        if stage in (None, "fit"):
            self.train_dataset = PosedViewsIterableDataset(self.cfg, views_of(self.cfg, "train"))
        if not self._has_held_out_views:
            self.test_dataset = HeldOutViewsDataset(self.cfg, views_of(self.cfg, "test"))

    @property
    def _has_held_out_views(self) -> bool:
        return "test_dataset" in self.__dict__

    def val_dataloader(self) -> DataLoader:
        return self.test_dataloader()
