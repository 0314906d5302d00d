"""configs/asd-3dconv.yaml at tiny size: the keys that make it small, its launch in this process, what a run left."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from launch import main

ROOT = Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / "configs" / "asd-3dconv.yaml")
PROMPTS = ["a red car", "a blue chair", "a red chair"]
TRIAL = Path("outputs/asd-3dconv/world_16")
TEXT_DIM = 16

SMALL = [
    "use_timestamp=false", "data.batch_size=2", "data.n_view=2", "data.width=8", "data.height=8",
    "data.eval_width=8", "data.eval_height=8", "data.n_val_views=2", "data.n_test_views=3",
    f"system.geometry.text_dim={TEXT_DIM}", "system.geometry.style_dim=8", "system.geometry.feature_dim=4",
    "system.geometry.hidden_dim=8", "system.geometry.channels=[8,4]", "system.geometry.constant_bias_up_to=4",
    "system.renderer.num_samples_per_ray=16", "system.renderer.eikonal_points=32",
    "system.judge=null", "system.exporter.resolution=16",
    "trainer.max_steps=3", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false", "checkpoint.every_n_train_steps=1",
]  # fmt: skip


def library(folder: Path, prompts: Any = PROMPTS) -> str:
    path = folder / "library.json"
    path.write_text(json.dumps({"train": prompts}))
    return f"data.prompt_library={path}"


def model(folder: Path) -> str:
    return f"system.prompt_processor.pretrained_model_name_or_path={folder}"


@pytest.fixture()
def launch_job(tmp_path, monkeypatch, tiny_sd_folder, text_cache) -> Callable[..., int]:
    """Runs the tiny job in this process, in an empty working folder; gives the exit code."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    shipped = [library(tmp_path), model(tiny_sd_folder), *SMALL]

    def launch(mode: str, *arguments: str) -> int:
        return main(["--config", CONFIG, mode, *shipped, *arguments])

    launch.arguments = shipped
    return launch


def state_of(checkpoint: Path) -> dict:
    loaded = torch.load(checkpoint, weights_only=True)
    return {key: loaded[key] for key in ("global_step", "state_dict", "optimizer_states")}


def column(trial: Path, name: str) -> list[float]:
    """The values of a figure that a run logged."""
    (path,) = sorted(trial.glob("csv_logs/version_*/metrics.csv"))[-1:]
    with open(path, newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]
