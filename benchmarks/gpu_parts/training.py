"""Steps a second of the main job and of the four representations, and their losses beside those of the CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from benchmarks.gpu_parts.shared import Row, Setting, existing_keys, guarded
from benchmarks.timing import synchronize
from threestudio.utils.config import load_config
from threestudio.utils.devices import running_on
from threestudio.utils.launching import build

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NAMES = ("asd-3dconv", "asd-nerf", "asd-sdf", "asd-dmtet", "asd-gaussians")
TINY = {
    "data.width": 8, "data.height": 8, "data.batch_size": 1, "data.n_view": 1, "system.geometry.channels": "[8,4]",
    "system.geometry.constant_bias_up_to": 4, "system.geometry.pos_encoding_config.log2_hashmap_size": 8,
    "system.renderer.num_samples_per_ray": 16, "system.geometry.isosurface_resolution": 8,
    "system.geometry.init_num_pts": 50, "system.judge": "null", "system.evaluation.judge": "''",
}  # fmt: skip
STEPS = {"cuda": 60, "cpu": 10}
TINY_STEPS = 2


class Watch(pl.Callback):
    """When each step ended, and its loss."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        self.setting, self.device = setting, device
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        synchronize(self.device)
        self.ends.append(time.perf_counter())
        self.losses.append(float(outputs["loss"]))
        trainer.should_stop = self.setting.late

    @property
    def steps_a_second(self) -> float:
        seconds = [later - earlier for earlier, later in zip(self.ends, self.ends[1:])]
        return 1.0 / statistics.median(seconds[len(seconds) // 3 :])  # the first ones warm up


def train(name: str, setting: Setting, device: torch.device) -> Watch:
    path = str(CONFIGS / f"{name}.yaml")
    small = existing_keys(load_config(path), TINY) if setting.tiny else []
    cfg = load_config(path, cli_args=small)
    watch = Watch(setting, device)
    with running_on(device):
        data, system = build(cfg)
        trainer = pl.Trainer(
            max_steps=TINY_STEPS if setting.tiny else STEPS[device.type], callbacks=[watch], logger=False,
            precision=cfg.trainer.get("precision", 32) if device.type == "cuda" else 32,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
            num_sanity_val_steps=0, accelerator="gpu" if device.type == "cuda" else "cpu", devices=1,
            inference_mode=False,
        )  # fmt: skip
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        trainer.fit(system, datamodule=data)
    return watch


def compared(name: str, setting: Setting) -> dict[str, Any]:
    """Means over the first steps: draws of one seed differ between devices, so single losses do not compare."""
    ours = train(name, setting, setting.device)
    figures: dict[str, Any] = {"steps/s": ours.steps_a_second, "loss, first steps": mean(ours.losses)}
    if setting.device.type == "cuda":
        figures["memory (GiB)"] = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
    if setting.device.type == "cpu":  # of a dry run: it is the same again
        return figures
    if setting.late:
        return {**figures, "loss, first steps, CPU": "left out: no time"}
    beside = train(name, setting, torch.device("cpu"))
    return {**figures, "loss, first steps, CPU": mean(beside.losses), "steps/s, CPU": beside.steps_a_second}


def mean(losses: list[float]) -> float:
    first = losses[: STEPS["cpu"]]
    return sum(first) / len(first)


def rows(setting: Setting) -> Iterator[Row]:
    for name in NAMES:
        yield guarded(name, setting, lambda name=name: compared(name, setting))
