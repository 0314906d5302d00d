"""`turboprop-multiprompt-camera-datamodule`: several prompts a step, with several cameras for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

import threestudio
from threestudio.data.stepwise import StepwiseDataModule
from threestudio.data.uncond import RandomCameraDataModuleConfig, RandomCameraDataset, RandomCameraIterableDataset
from threestudio.utils.base import UpdateableInParts
from threestudio.utils.config import parse_structured

from ..multi_view.view_sets import ViewSets
from ..teachers.prompts.library import PromptLibrary, chosen_library


@dataclass
class MultiPromptCameraConfig(RandomCameraDataModuleConfig):
    """Cameras as random-camera-datamodule's; `batch_size` counts prompts."""

    # a JSON file {"train": [...], "val": [...], "test": [...]}, or the name of one in load/ or that ships
    prompt_library: str = ""
    prompts: list[str] | None = None  # a list of prompts, in place of a library
    n_view: int = 1  # cameras for each prompt of a step
    # The cameras of a prompt are one set: at equal steps of azimuth, with one elevation, distance and field of view,
    # as multi-view teachers want them. false: each camera is drawn by itself, in a sector of azimuth of its own.
    view_sets: bool = False
    noise_dim: int = 0  # width of the generator's noise, geometry.noise_dim
    eval_noise_seed: int = 0  # the noise of validation, test and export: one for all prompts


def prompts_at(prompts: list[str], step: int, count: int) -> list[str]:
    """The `count` prompts of a batch, one a step: passes over the whole list, each in an order of its own.

    A function of the number alone. Every prompt comes once a pass; a batch takes as many of the
    next pass as it still needs.
    """
    chosen: list[str] = []
    position = step * count
    while len(chosen) < count:
        turn, offset = divmod(position, len(prompts))
        order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(turn))
        take = order[offset : offset + count - len(chosen)]
        chosen += [prompts[int(i)] for i in take]
        position += len(take)
    return chosen


class MultiPromptIterableDataset(IterableDataset, UpdateableInParts):
    """Endless batches: P prompts, V cameras each, prompt by prompt."""

    def __init__(self, cfg: Any, prompts: list[str], views: list[int], view_sets: ViewSets | None) -> None:
        """`views`: cameras of a step, one number for each stage. `view_sets`: None draws each camera by itself."""
        super().__init__()
        self.cfg, self.prompts, self.view_sets = cfg, prompts, view_sets
        camera_cfg = {key: cfg[key] for key in RandomCameraDataModuleConfig.__dataclass_fields__}
        camera_cfg["batch_size"] = views if len(views) > 1 else views[0]
        self.cameras = RandomCameraIterableDataset(parse_structured(RandomCameraDataModuleConfig, camera_cfg))
        self.step = 0
        self.update_part(0, 1)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        self.step = global_step
        self.update_part(0, 1)
        self.cameras.update_step(epoch, global_step, on_load_weights)

    def update_part(self, part: int, parts: int) -> None:
        """The next batch is number `part` of the `parts` of this step: each has other prompts."""
        self.part, self.parts = part, parts

    def __iter__(self):
        while True:
            yield {}

    def collate(self, batch: Any) -> dict[str, Any]:
        """One step: what threestudio's cameras hold [P * V, ...], and prompt (P texts), noise [P, Z]."""
        count = self.cameras.batch_size // self.cfg.n_view
        cameras = self._single_cameras(count) if self.view_sets is None else self.view_sets.draw(self.cameras)
        noise = torch.randn(count, self.cfg.noise_dim)
        prompts = prompts_at(self.prompts, self.step * self.parts + self.part, count)
        return {**cameras, "prompt": prompts, "noise": noise}

    def _single_cameras(self, count: int) -> dict[str, Any]:
        """Cameras drawn one by one, for `count` prompts."""
        cameras = self.cameras.collate({})
        # They come in sectors of azimuth: give each prompt V sectors far from one another.
        order = torch.arange(count * self.cfg.n_view).reshape(self.cfg.n_view, count).T.reshape(-1)
        return {k: v[order] if isinstance(v, torch.Tensor) else v for k, v in cameras.items()}


class PromptOrbitDataset(Dataset):
    """One item a prompt: all cameras of the evaluation orbit."""

    def __init__(self, cfg: Any, prompts: list[str], split: str) -> None:
        super().__init__()
        self.prompts = prompts
        self.orbit = RandomCameraDataset(cfg, split)
        generator = torch.Generator().manual_seed(cfg.eval_noise_seed)
        self.noise = torch.randn(1, cfg.noise_dim, generator=generator)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        cameras = self.orbit.collate([self.orbit[i] for i in range(len(self.orbit))])
        return {**cameras, "index": index, "prompt": [self.prompts[index]], "noise": self.noise}

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        (item,) = items
        return item


@threestudio.register("turboprop-multiprompt-camera-datamodule")
class MultiPromptCameraDataModule(StepwiseDataModule):
    """Random cameras of several prompts a step; an orbit of each prompt to look at."""

    config_class = MultiPromptCameraConfig

    def __init__(self, cfg: Any | None = None) -> None:
        super().__init__()
        self.cfg = parse_structured(self.config_class, cfg)
        self.sets = self.view_sets()
        self.views = self.views_of_stages()
        self.library = self.chosen_prompts()

    def chosen_prompts(self) -> PromptLibrary:
        return chosen_library(self.cfg.prompt_library, self.cfg.prompts, "data")

    def view_sets(self) -> ViewSets | None:
        """How the cameras of a prompt are drawn together; None: each by itself."""
        sets = ViewSets(self.cfg.n_view)
        return sets if self.cfg.view_sets else None

    def views_of_stages(self) -> list[int]:
        """Cameras of a step, one number for each stage."""
        return [size * self.cfg.n_view for size in self.batch_sizes()]

    def batch_sizes(self) -> list[int]:
        """`batch_size`, one number for each stage."""
        return [self.cfg.batch_size] if isinstance(self.cfg.batch_size, int) else list(self.cfg.batch_size)

    def setup(self, stage: str | None = None) -> None:
        if stage in (None, "fit"):
            prompts = self.library.split("train")
            self.train_dataset = MultiPromptIterableDataset(self.cfg, prompts, self.views, self.sets)
        if stage in (None, "fit", "validate"):
            self.val_dataset = PromptOrbitDataset(self.cfg, self.library.split("val"), "val")
        if stage in (None, "test", "predict"):
            self.test_dataset = PromptOrbitDataset(self.cfg, self.library.split("test"), "test")
