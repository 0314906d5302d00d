"""`turboprop-multiprompt-camera-datamodule`: several prompts a step, several cameras for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional

import pytorch_lightning as pl
import threestudio
import torch
from threestudio.data.uncond import RandomCameraDataModuleConfig, RandomCameraDataset, RandomCameraIterableDataset
from threestudio.utils.base import Updateable
from threestudio.utils.config import parse_structured
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..teachers.prompts.library import load_prompt_library, prompt_list


@dataclass
class MultiPromptCameraConfig(RandomCameraDataModuleConfig):
    """Cameras as random-camera-datamodule's; `batch_size` counts prompts."""

    prompt_library: str = ""  # a JSON file {"train": [...], "val": [...], "test": [...]}, or the name of one in load/
    prompts: Optional[List[str]] = None  # a list of prompts, in place of a library
    n_view: int = 1  # cameras for each prompt of a step
    noise_dim: int = 0  # width of the generator's noise, geometry.noise_dim
    eval_noise_seed: int = 0  # the noise of validation, test and export: one for all prompts


def prompts_at(prompts: List[str], step: int, count: int) -> List[str]:
    """The `count` prompts of a step: passes over the whole list, each in an order of its own.

    A function of the step alone. Every prompt comes once a pass; a step takes as many of the
    next pass as it still needs.
    """
    chosen: List[str] = []
    position = step * count
    while len(chosen) < count:
        turn, offset = divmod(position, len(prompts))
        order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(turn))
        take = order[offset : offset + count - len(chosen)]
        chosen += [prompts[int(i)] for i in take]
        position += len(take)
    return chosen


class MultiPromptIterableDataset(IterableDataset, Updateable):
    """Endless batches: P prompts, V cameras each, prompt by prompt."""

    def __init__(self, cfg: Any, prompts: List[str]) -> None:
        super().__init__()
        self.cfg, self.prompts = cfg, prompts
        self.prompt_batch_sizes = [cfg.batch_size] if isinstance(cfg.batch_size, int) else list(cfg.batch_size)
        views = [size * cfg.n_view for size in self.prompt_batch_sizes]
        camera_cfg = {key: cfg[key] for key in RandomCameraDataModuleConfig.__dataclass_fields__}
        camera_cfg["batch_size"] = views if len(views) > 1 else views[0]
        self.cameras = RandomCameraIterableDataset(parse_structured(RandomCameraDataModuleConfig, camera_cfg))
        self.step = 0

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        self.step = global_step
        self.cameras.update_step(epoch, global_step, on_load_weights)

    def __iter__(self):
        while True:
            yield {}

    def collate(self, batch: Any) -> Dict[str, Any]:
        """One step: what threestudio's cameras hold [P * V, ...], and prompt (P texts), noise [P, Z]."""
        cameras = self.cameras.collate(batch)
        views = self.cfg.n_view
        count = self.cameras.batch_size // views
        # Cameras come in sectors of azimuth: give each prompt V sectors far from one another.
        order = torch.arange(count * views).reshape(views, count).T.reshape(-1)
        cameras = {k: v[order] if isinstance(v, torch.Tensor) else v for k, v in cameras.items()}
        noise = torch.randn(count, self.cfg.noise_dim)
        return {**cameras, "prompt": prompts_at(self.prompts, self.step, count), "noise": noise}


class PromptOrbitDataset(Dataset):
    """One item a prompt: all cameras of the evaluation orbit."""

    def __init__(self, cfg: Any, prompts: List[str], split: str) -> None:
        super().__init__()
        self.prompts = prompts
        self.orbit = RandomCameraDataset(cfg, split)
        generator = torch.Generator().manual_seed(cfg.eval_noise_seed)
        self.noise = torch.randn(1, cfg.noise_dim, generator=generator)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Dict[str, Any]:
        cameras = self.orbit.collate([self.orbit[i] for i in range(len(self.orbit))])
        return {**cameras, "index": index, "prompt": [self.prompts[index]], "noise": self.noise}


def _the_item(items: List[Dict[str, Any]]) -> Dict[str, Any]:
    (item,) = items
    return item


@threestudio.register("turboprop-multiprompt-camera-datamodule")
class MultiPromptCameraDataModule(pl.LightningDataModule):
    def __init__(self, cfg: Optional[Any] = None) -> None:
        super().__init__()
        self.cfg = parse_structured(MultiPromptCameraConfig, cfg)
        if self.cfg.n_view < 1:
            raise ValueError(f"data.n_view: expected at least 1, got {self.cfg.n_view}")
        if self.cfg.prompt_library and self.cfg.prompts is not None:
            raise ValueError("data: expected prompt_library or prompts, got both")
        if self.cfg.prompt_library:
            self.library = load_prompt_library(self.cfg.prompt_library)
        elif self.cfg.prompts is not None:
            self.library = prompt_list(list(self.cfg.prompts))
        else:
            raise ValueError("data: expected prompt_library (a JSON file or name) or prompts, got neither")

    def setup(self, stage: Optional[str] = None) -> None:
        if stage in (None, "fit"):
            self.train_dataset = MultiPromptIterableDataset(self.cfg, self.library.split("train"))
        if stage in (None, "fit", "validate"):
            self.val_dataset = PromptOrbitDataset(self.cfg, self.library.split("val"), "val")
        if stage in (None, "test", "predict"):
            self.test_dataset = PromptOrbitDataset(self.cfg, self.library.split("test"), "test")

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataset, num_workers=0, batch_size=None, collate_fn=self.train_dataset.collate)

    def _orbit_loader(self, dataset: PromptOrbitDataset) -> DataLoader:
        return DataLoader(dataset, num_workers=0, batch_size=1, collate_fn=_the_item)

    def val_dataloader(self) -> DataLoader:
        return self._orbit_loader(self.val_dataset)

    def test_dataloader(self) -> DataLoader:
        return self._orbit_loader(self.test_dataset)

    def predict_dataloader(self) -> DataLoader:
        return self._orbit_loader(self.test_dataset)


@threestudio.register("multiprompt-camera-datamodule")
class ScaleDreamerCameraDataModule(MultiPromptCameraDataModule):
    """The same, under ScaleDreamer's name."""
