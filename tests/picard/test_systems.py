"""Every system by Picard iterations, through the command line at tiny size: as step by step, and as not interrupted."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from launch import main
from tests.host.test_resume import assert_same
from tests.picard.runs import state_of
from tests.test_configs import METHODS, ROOT, Runs, models, runs  # noqa: F401

STEPS, HALF = 6, 3
MIXED = {"prolificdreamer", "prolificdreamer-texture"}  # with a teacher that learns
GUIDANCE_LOSS = {"sdi": "sdi", "prolificdreamer": "vsd", "prolificdreamer-texture": "vsd"}
# What a run of STEPS steps goes through: schedules of a weight and of timesteps, validation, checkpoints.
COMMON = [
    "use_timestamp=false", "tag=trial", f"trainer.max_steps={STEPS}", "trainer.log_every_n_steps=1",
    f"trainer.val_check_interval={HALF}", "trainer.limit_test_batches=1", "trainer.enable_progress_bar=false",
    f"checkpoint.every_n_train_steps={HALF}", "checkpoint.save_top_k=-1", "data.n_val_views=1",
    "system.guidance.max_step_percent=[0,0.9,0.5,4]",
]  # fmt: skip


class Trial:
    """What a run has left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def checkpoint(self, name: str = "last") -> dict:
        return torch.load(self.folder / "ckpts" / f"{name}.ckpt", weights_only=True)

    def state(self) -> dict:
        return state_of(self.checkpoint())

    def strides(self) -> list[int]:
        return [row[2] for row in self.checkpoint()["picard"]["history"]]

    def logs(self) -> dict[str, list[str]]:
        """What was logged of the steps, by name, without what Picard iterations add."""
        (file,) = self.folder.glob("csv_logs/version_0/metrics.csv")
        rows = list(csv.DictReader(file.open()))
        names = [name for name in rows[0] if not name.startswith("picard/")]
        return {name: [row[name] for row in rows if row[name]] for name in names}

    def files(self) -> set[str]:
        """Names of checkpoints and results."""
        kept = [*self.folder.glob("ckpts/*"), *self.folder.glob("save/**/*")]
        return {str(path.relative_to(self.folder)) for path in kept if not path.name.startswith("picard.")}


class Systems:
    """Trains a config of configs/ at tiny size, plainly or by Picard iterations."""

    def __init__(self, stages: Runs, root: Path) -> None:
        self.stages, self.root = stages, root

    def train(self, name: str, folder: str, *extra: str, picard: tuple[str, ...] = ()) -> Trial:
        config = OmegaConf.load(ROOT / "configs" / f"{name}.yaml")
        loss = GUIDANCE_LOSS.get(name, "sds")
        given = [f"exp_root_dir={self.root / folder}", f"system.loss.lambda_{loss}=[0,1.0,2.0,4]", *COMMON]
        if picard:
            given += [f"system_type={config.system_type}:picard", *(f"system.picard.{key}" for key in picard)]
        assert self.stages.launch(name, "--train", *given, *extra) == 0
        return Trial(self.root / folder / config.name / "trial")


@pytest.fixture()
def systems(runs, tmp_path) -> Systems:  # noqa: F811
    return Systems(runs, tmp_path)


def assert_as_step_by_step(run: Trial, plain: Trial) -> None:
    """The same state, logs of each step, pictures and checkpoints."""
    assert_same(run.state(), plain.state())
    logs, expected = run.logs(), plain.logs()
    assert logs == expected
    losses = [name for name in expected if name.startswith("train/loss_")]
    assert losses and all(len(logs[name]) == STEPS for name in losses)
    assert run.files() == plain.files()
    assert {f"ckpts/epoch=0-step={step}.ckpt" for step in (HALF, STEPS)} <= run.files()
    assert any(f"it{HALF}-" in name for name in run.files()) and any(f"it{STEPS}-" in name for name in run.files())


@pytest.mark.parametrize("name", METHODS)
def test_a_threshold_of_zero_is_the_run_step_by_step(name, systems):
    plain = systems.train(name, "plain")
    run = systems.train(name, "run", picard=("threshold=0", "window=3"))
    assert_as_step_by_step(run, plain)
    logs = plain.logs()
    weights = [float(value) for value in logs[f"train_params/lambda_{GUIDANCE_LOSS.get(name, 'sds')}"]]
    assert weights == [1.0, 1.25, 1.5, 1.75, 2.0, 2.0]


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_ends_as_one_that_was_not_stopped(name, systems):
    keys = ("threshold=1e30", "window=4")
    whole = systems.train(name, "whole", picard=keys)
    assert max(whole.strides()) > 1 and sum(whole.strides()) == STEPS
    resumed = systems.train(name, "part", f"resume={whole.folder}/ckpts/epoch=0-step={HALF}.ckpt", picard=keys)
    assert_same(resumed.state(), whole.state())


@pytest.mark.parametrize("keys", [("beside=state",), ("beside=local", "executor=batched")])
def test_a_teacher_that_learns_follows_the_accepted_steps(systems, keys):
    """VSD in one process is exact at a threshold of zero, though slots after the base teach it too."""
    plain = systems.train("prolificdreamer", "plain")
    run = systems.train("prolificdreamer", "run", picard=("threshold=0", "window=3", *keys))
    if "executor=batched" not in keys:
        return assert_as_step_by_step(run, plain)
    expected = plain.checkpoint()["state_dict"]
    for name, value in run.checkpoint()["state_dict"].items():  # a larger batch's sums are rounded otherwise
        assert torch.allclose(value.float(), expected[name].float(), rtol=1e-3, atol=1e-4), name
