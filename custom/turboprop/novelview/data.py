"""`turboprop-novelview-datamodule`: pairs of views of one object, from folders of renders.

What a training batch holds is a function of (seed, batch number, process) alone, whichever worker reads it, so that a
resumed run sees the same batches.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import threestudio
from threestudio.utils.config import parse_structured
from threestudio.utils.errors import UserError
from threestudio.utils.keyed_random import step_key
from threestudio.utils.misc import get_rank
from threestudio.utils.value_checks import check_at_least

from .cached_latents import LatentCache, open_latent_cache
from .renders import BrokenFolder, FolderIndex, open_index, read_camera, read_render, split_of, view_numbers

MAX_BROKEN = 100  # folders in a row; then the root is not what it should be


@dataclass
class NovelViewDataConfig:
    root: str = ""  # folder of renders in zero-1-to-3's layout
    validation_root: str = ""  # another one for validation; default: the last `validation_share` of the root
    validation_share: float = 0.01  # of the root's folders, the last ones; not used with validation_root
    image_size: int = 256  # side of the pictures, pixels; the autoencoder's
    batch_size: int = 8  # pairs a step and process
    validation_pairs: int = 64  # always the same ones
    validation_batch_size: int = 8
    num_workers: int = 0  # processes that read
    latent_cache: str = ""  # folder made by novelview.latent_cache; default: the autoencoder runs in training


def check_config(cfg: NovelViewDataConfig) -> None:
    """Raises ValueError with the key that is wrong."""
    if not cfg.root:
        raise UserError("data.root: expected a folder of renders (see docs/novelview.md), got an empty name")
    for key in ("image_size", "batch_size", "validation_pairs", "validation_batch_size"):
        check_at_least(f"data.{key}", cfg[key], 1)
    check_at_least("data.num_workers", cfg.num_workers, 0)
    if not 0.0 <= cfg.validation_share < 1.0:
        raise UserError(f"data.validation_share: expected a number in [0, 1), got {cfg.validation_share}")
    if cfg.validation_share == 0 and not cfg.validation_root:
        raise UserError("data.validation_share: expected above 0, or a data.validation_root; got 0")


class ViewPairs(Dataset):
    """Two views of one object for a 64-bit key; the key decides folder and views.

    Args:
        index: the folders.
        numbers: of the folders to draw from.
        image_size: pixels.
        latents: a cache of latents; the target's picture is then left out.

    An item: input_image and target_image [3, S, S] in [-1, 1], input_camera and target_camera [3] (elevation and
    azimuth in degrees, distance), broken: how many unusable folders were drawn before; with a cache input_moments and
    target_moments [2, C, h, w] in the place of target_image.
    """

    def __init__(self, index: FolderIndex, numbers: range, image_size: int, latents: LatentCache | None = None) -> None:
        self.index, self.numbers, self.image_size, self.latents = index, numbers, image_size, latents

    def __getitem__(self, key: int) -> dict[str, Any]:
        generator = random.Random(key)
        reason = ""
        for broken in range(MAX_BROKEN):
            number = self.numbers[generator.randrange(len(self.numbers))]
            try:
                return {**self._pair(number, generator), "broken": broken}
            except BrokenFolder as error:
                reason = str(error)
        raise UserError(f"{MAX_BROKEN} folders in a row of {self.index.root} cannot be used, the last one: {reason}")

    def _pair(self, number: int, generator: random.Random) -> dict[str, Tensor]:
        folder = self.index.folder(number)
        views = view_numbers(folder)
        if len(views) < 2:
            raise BrokenFolder(f"{folder}: expected two views or more (000.png with 000.npy), found {len(views)}")
        given, wanted = generator.sample(views, 2)
        item = {
            "input_image": read_render(folder / f"{given:03d}.png", self.image_size),
            "input_camera": read_camera(folder / f"{given:03d}.npy"),
            "target_camera": read_camera(folder / f"{wanted:03d}.npy"),
        }
        if self.latents is None:
            return item | {"target_image": read_render(folder / f"{wanted:03d}.png", self.image_size)}
        item["input_moments"] = self.latents.read(number, given)
        return item | {"target_moments": self.latents.read(number, wanted)}


class FixedPairs(Dataset):
    """Pairs that are equal every time, so that runs and steps can be compared."""

    def __init__(self, pairs: ViewPairs, count: int) -> None:
        self.pairs, self.count = pairs, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.pairs[step_key(0, number, 0, "novel-view validation")] | {"number": number}


class KeyedBatches:
    """An endless batch sampler: the keys of one batch after another, from the batch that `start` says.

    Args:
        batch_size: keys a batch.
        seed: of the run.
        rank: of this process.
        start: the number of the first batch, asked when iteration begins.
    """

    def __init__(self, batch_size: int, seed: int, rank: int, start: Callable[[], int]) -> None:
        self.batch_size, self.seed, self.rank, self.start = batch_size, seed, rank, start

    def __iter__(self) -> Iterator[list[int]]:
        batch = self.start()
        while True:
            first = batch * self.batch_size
            rows = range(first, first + self.batch_size)
            yield [step_key(self.seed, row, self.rank, "novel-view pairs") for row in rows]
            batch += 1


@threestudio.register("turboprop-novelview-datamodule")
class NovelViewDataModule(pl.LightningDataModule):
    def __init__(self, cfg: Any = None) -> None:
        super().__init__()
        self.cfg = parse_structured(NovelViewDataConfig, cfg)
        check_config(self.cfg)

    def setup(self, stage: str | None = None) -> None:
        if "train_pairs" in self.__dict__:
            return
        cfg = self.cfg
        index = open_index(cfg.root)
        training, held_out = split_of(len(index), 0.0 if cfg.validation_root else cfg.validation_share)
        latents = open_latent_cache(cfg.latent_cache, index) if cfg.latent_cache else None
        self.train_pairs = ViewPairs(index, training, cfg.image_size, latents)
        if cfg.validation_root:
            index = open_index(cfg.validation_root, "data.validation_root")
            held_out = range(len(index))
        if not held_out:
            raise UserError(f"data.root: expected two folders or more, one of them for validation; got {len(index)}")
        # Pictures of validation are looked at, so they are read even where latents are cached.
        self.validation_pairs = FixedPairs(ViewPairs(index, held_out, cfg.image_size), cfg.validation_pairs)
        for pairs in (self.train_pairs, self.validation_pairs):
            pairs[0]  # raises now, not in a step, where no folder can be used

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        progress = trainer.fit_loop.epoch_loop.batch_progress
        seed = trainer.lightning_module.run_seed
        batches = KeyedBatches(self.cfg.batch_size, seed, get_rank(), lambda: progress.total.processed)
        workers = self.cfg.num_workers
        return DataLoader(
            self.train_pairs, batch_sampler=batches, num_workers=workers, pin_memory=torch.cuda.is_available(),
            prefetch_factor=4 if workers else None,
        )  # fmt: skip

    def _validation_loader(self) -> DataLoader:
        return DataLoader(
            self.validation_pairs, batch_size=self.cfg.validation_batch_size, num_workers=self.cfg.num_workers
        )

    val_dataloader = test_dataloader = _validation_loader

    def predict_dataloader(self) -> DataLoader:
        """One batch: exporting writes files and asks nothing of the data."""
        return DataLoader(FixedPairs(self.validation_pairs.pairs, 1), batch_size=1)
