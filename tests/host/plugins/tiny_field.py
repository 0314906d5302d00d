"""A plugin as a third party would write one: a field of distances learned from random points."""

import dataclasses
import signal
import time
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import threestudio
from threestudio.systems.base import BaseSystem
from threestudio.utils.base import BaseModule, Updateable
from threestudio.utils.config import parse_structured


@dataclass
class PointsConfig:
    batch_size: int = 16
    radius: float = 1.0  # half the side of the cube of points; grows with the step
    sized: bool = False  # whether the train set has a length
    length: int = 8  # of a train set that has one


class RandomPoints(IterableDataset, Updateable):
    def __init__(self, cfg):
        self.cfg = cfg
        self.side = 0.0
        self.updates = []

    def update_step(self, epoch, global_step, on_load_weights=False):
        self.side = self.cfg.radius * (1 + 0.01 * global_step)
        self.updates.append(global_step)

    def __iter__(self):
        while True:
            yield {}

    def collate(self, batch):
        return {"points": (torch.rand(self.cfg.batch_size, 3) * 2 - 1) * self.side}


class FixedPoints(Dataset, Updateable):
    def __init__(self, cfg, length):
        generator = torch.Generator().manual_seed(7)
        self.points = torch.rand(length, cfg.batch_size, 3, generator=generator) * 2 - 1

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        return {"points": self.points[index], "index": index}


@threestudio.register("tiny-points-datamodule")
class PointsDataModule(pl.LightningDataModule):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = parse_structured(PointsConfig, cfg)

    def setup(self, stage=None):
        self.train_set = RandomPoints(self.cfg)
        if self.cfg.sized:
            self.train_set = FixedPoints(self.cfg, self.cfg.length)
        self.val_set = FixedPoints(self.cfg, 2)

    def train_dataloader(self):
        if self.cfg.sized:
            return DataLoader(self.train_set, batch_size=None, shuffle=True)
        return DataLoader(self.train_set, batch_size=None, collate_fn=self.train_set.collate)

    def val_dataloader(self):
        return DataLoader(self.val_set, batch_size=None)

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader


@threestudio.register("tiny-field")
class Field(BaseModule):
    @dataclass
    class Config(BaseModule.Config):
        n_neurons: int = 8
        dropout: float = 0.2

    def configure(self):
        n = self.cfg.n_neurons
        self.layers = nn.Sequential(nn.Linear(3, n), nn.ReLU(), nn.Dropout(self.cfg.dropout), nn.Linear(n, 1))
        self.register_buffer("average", torch.zeros(n))  # changes at the end of a step

    def update_step_end(self, epoch, global_step):
        if self.training:  # evaluation ends its steps too
            self.average.lerp_(self.layers[0].bias.detach(), 0.1)

    def forward(self, points):
        return self.layers(points)


@threestudio.register("tiny-field-system")
class FieldSystem(BaseSystem):
    @dataclass
    class Config(BaseSystem.Config):
        field: dict = dataclasses.field(default_factory=dict)
        nan_at: list[int] = dataclasses.field(default_factory=list)  # steps whose gradient is made NaN
        slow_s: float = 0.0  # seconds that each step takes longer
        slow_build_s: float = 0.0  # seconds that building takes longer; leaves a file `building`
        fail_at: int | None = None  # step that raises; -1 is building
        interrupt_at: int | None = None  # step in whose first batch the run is sent a signal
        interrupt_with: int = int(signal.SIGINT)  # which signal
        interrupt_validation_at: int | None = None  # step whose validation it is sent in
        interrupt_afterwards: bool = False  # in the first test or export

    def configure(self):
        if self.cfg.fail_at == -1:
            raise ValueError("a bug in building")
        self.field = threestudio.find("tiny-field")(self.cfg.field)

        if self.cfg.slow_build_s:
            open("building", "w").close()
            until = time.monotonic() + self.cfg.slow_build_s
            while time.monotonic() < until:  # not at one go: a signal just before a sleep is seen after it
                time.sleep(0.05)

    def training_step(self, batch, batch_idx):
        points = batch["points"]
        if self.global_step == self.cfg.fail_at:
            raise RuntimeError(f"a bug in step {self.global_step}")
        if self.global_step == self.cfg.interrupt_at and batch_idx % self.trainer.accumulate_grad_batches == 0:
            signal.raise_signal(self.cfg.interrupt_with)
        if self.cfg.slow_s:
            time.sleep(self.cfg.slow_s)
        noise = torch.randn_like(points) * 0.01
        error = self.field(points + noise)[:, 0] - points.norm(dim=-1)
        loss = (error**2).mean() * self.C(self.cfg.loss.lambda_distance)
        if self.global_step in self.cfg.nan_at:
            loss = loss * float("nan")
        self.log("train/loss_distance", loss)
        return {"loss": loss}

    def validation_step(self, batch, batch_idx):
        if self.global_step == self.cfg.interrupt_validation_at and batch_idx == 0:
            signal.raise_signal(self.cfg.interrupt_with)
        torch.rand(5)  # a draw that must not disturb training
        self.log("val/error", self.field(batch["points"]).abs().mean())

    def test_step(self, batch, batch_idx):
        if self.cfg.interrupt_afterwards:
            signal.raise_signal(self.cfg.interrupt_with)
        self.save_json(f"it{self.true_global_step}-test/{batch_idx}.json", {"step": batch_idx})

    def predict_step(self, batch, batch_idx):
        if self.cfg.interrupt_afterwards:
            signal.raise_signal(self.cfg.interrupt_with)
        self.save_json(f"it{self.true_global_step}-export/{batch_idx}.json", {"step": batch_idx})
