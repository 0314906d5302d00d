"""`mvdream-random-multiview-camera-datamodule`: random cameras in sets, around one scene."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import IterableDataset

import threestudio
from threestudio.data.stepwise import StepwiseDataModule
from threestudio.data.uncond import RandomCameraDataModuleConfig, RandomCameraDataset, RandomCameraIterableDataset
from threestudio.utils.base import Updateable
from threestudio.utils.config import parse_structured

from .view_sets import ViewSets


@dataclass
class MultiViewCameraConfig(RandomCameraDataModuleConfig):
    """Cameras as random-camera-datamodule's; `batch_size` counts views, n_view of them a set."""

    n_view: int = 1  # cameras of a set
    relative_radius: bool = True  # camera_distance_range is in units of 1 / tan(fovy / 2)
    zoom_range: tuple[float, float] = (1.0, 1.0)  # factors on the field of view once the distance is set


class MultiViewIterableDataset(IterableDataset, Updateable):
    """Endless batches of camera sets; ``collate`` draws one."""

    def __init__(self, cfg: Any, sets: ViewSets) -> None:
        super().__init__()
        self.sets = sets
        self.cameras = RandomCameraIterableDataset(cfg)
        for views in self.cameras.batch_sizes:
            sets.sets_in(views)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        self.cameras.update_step(epoch, global_step, on_load_weights)

    def __iter__(self) -> Iterator[dict]:
        while True:
            yield {}

    def collate(self, batch: Any) -> dict[str, Any]:
        """What threestudio's cameras hold, set by set."""
        return self.sets.draw(self.cameras)


@threestudio.register("mvdream-random-multiview-camera-datamodule")
class MultiViewCameraDataModule(StepwiseDataModule):
    """Sets of cameras to train with, and the host's orbit to look with."""

    cfg: MultiViewCameraConfig

    def __init__(self, cfg: Any | None = None) -> None:
        super().__init__()
        self.cfg = parse_structured(MultiViewCameraConfig, cfg)
        self.sets = ViewSets(self.cfg.n_view, self.cfg.relative_radius, tuple(self.cfg.zoom_range))

    def setup(self, stage: str | None = None) -> None:
        if stage in (None, "fit"):
            self.train_dataset = MultiViewIterableDataset(self.cfg, self.sets)
        if stage in (None, "fit", "validate"):
            self.val_dataset = RandomCameraDataset(self.cfg, "val")
        if stage in (None, "test", "predict"):
            self.test_dataset = RandomCameraDataset(self.cfg, "test")
