"""Every system by Picard iterations, through the command line at tiny size: as step by step, and as not interrupted."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from launch import main
from tests.config_runs import METHODS, ROOT, TINY, Runs, tiny_overrides
from tests.main_job import CONFIG, SMALL, library, model
from tests.picard.processes import free_port
from tests.picard.trials import COMMON, HALF, STEPS, Trial
from tests.saved_states import assert_same

GAUSSIANS = [
    "system.geometry.init_num_pts=60", "system.geometry.max_num=120", "system.geometry.densification_interval=2",
    "system.geometry.densify_from_iter=2", "system.geometry.densify_grad_threshold=0.0001",
    "system.geometry.prune_interval=4", "system.geometry.prune_from_iter=4", "data.batch_size=1",
]  # fmt: skip


class Systems:
    """Trains a config of configs/ at tiny size, plainly or by Picard iterations."""

    def __init__(self, stages: Runs, root: Path) -> None:
        self.stages, self.root = stages, root

    def command(
        self, name: str, folder: str, *extra: str, picard: tuple[str, ...] = (), change: Any = None
    ) -> list[str]:
        """Of the launcher; `change` makes another config of the one in configs/."""
        config = OmegaConf.load(ROOT / "configs" / f"{name}.yaml")
        if change is not None:
            change(config)
        path = self.root / folder / "config.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, path)
        gaussians = config.system.geometry_type == "gaussian-splatting"
        tiny = (
            [*TINY[:-1], *GAUSSIANS, "system.prompt_processor.prompt=a red car"]
            if gaussians
            else tiny_overrides(config)
        )
        start = self.stages.start(name) if change is None else []
        given = [*self.stages.models(config), *tiny, *start, f"exp_root_dir={self.root / folder}", *COMMON]
        loss = f"system.loss.lambda_{guidance_loss(config)}=[0,1.0,2.0,4]"
        if picard:
            keys = ("report=false", *picard)
            given += [f"system_type={config.system_type}:picard", *(f"system.picard.{key}" for key in keys)]
        return ["--config", str(path), "--train", *given, loss, *extra]

    def train(self, name: str, folder: str, *extra: str, picard: tuple[str, ...] = (), change: Any = None) -> "Trial":
        assert main(self.command(name, folder, *extra, picard=picard, change=change)) == 0
        (last,) = (self.root / folder).glob("*/trial/ckpts/last.ckpt")
        return Trial(last.parents[1])


def guidance_loss(config: Any) -> str:
    kind = config.system.guidance_type
    return "vsd" if "vsd" in kind else "sdi" if "sdi" in kind or "inversion" in kind else "sds"


@pytest.fixture()
def systems(runs, tmp_path) -> Systems:
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


def quick(*names: str) -> list:
    """All methods, the others marked slow."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]


@pytest.mark.parametrize("name", quick("magic3d-refine-sd", "textmesh-if", "fantasia3d", "sjc", "sdi"))
def test_a_threshold_of_zero_is_the_run_step_by_step(name, systems):
    plain = systems.train(name, "plain")
    run = systems.train(name, "run", picard=("threshold=0", "window=3"))
    assert_as_step_by_step(run, plain)
    logs = plain.logs()
    loss = guidance_loss(OmegaConf.load(ROOT / "configs" / f"{name}.yaml"))
    weights = [float(value) for value in logs[f"train_params/lambda_{loss}"]]
    assert weights == [1.0, 1.25, 1.5, 1.75, 2.0, 2.0]


@pytest.mark.parametrize("name", quick("magic3d-refine-sd", "prolificdreamer"))
def test_a_resumed_run_ends_as_one_that_was_not_stopped(name, systems):
    keys = ("threshold=1e30", "window=4")
    whole = systems.train(name, "whole", picard=keys)
    assert max(whole.strides()) > 1 and sum(whole.strides()) == STEPS
    resumed = systems.train(name, "part", f"resume={whole.folder}/ckpts/epoch=0-step={HALF}.ckpt", picard=keys)
    assert_same(resumed.state(), whole.state())


BATCHED = "executor=experimental_batched"


@pytest.mark.parametrize("keys", [(), ("learning_teacher=state",), pytest.param((BATCHED,), marks=pytest.mark.slow)])
def test_a_teacher_that_learns_follows_the_accepted_steps(systems, keys):
    """VSD in one process is exact at a threshold of zero, though slots after the base teach it too."""
    plain = systems.train("prolificdreamer", "plain")
    run = systems.train("prolificdreamer", "run", picard=("threshold=0", "window=3", *keys))
    if BATCHED not in keys:
        return assert_as_step_by_step(run, plain)
    expected = plain.checkpoint()["state_dict"]
    for name, value in run.checkpoint()["state_dict"].items():  # a larger batch's sums are rounded otherwise
        assert torch.allclose(value.float(), expected[name].float(), rtol=1e-3, atol=1e-4), name


@pytest.mark.slow
def test_a_teacher_that_learns_in_two_processes(systems):
    """As part of the state it is exact; else rank 0's, which computes the base, is taught once by each round."""
    plain = systems.train("prolificdreamer", "plain")
    keys = ("threshold=0", "window=2", "check_every=1")
    for kind in ("state", "local"):
        command = systems.command("prolificdreamer", kind, picard=(*keys, f"learning_teacher={kind}"))
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # as many as `plain` had: sums round by them
        options = {"cwd": ROOT, "env": {**os.environ, **threads}, "capture_output": True, "text": True}
        done = subprocess.run([*torchrun, "launch.py", *command], **options)
        assert done.returncode == 0, done.stderr
        assert ("no fixed point" in done.stderr) == (kind == "local")
        run = Trial(systems.root / kind / "prolificdreamer" / "trial")
        if kind == "state":
            assert_same(run.state(), plain.state())
            continue
        optimizer = run.checkpoint()["optimizer_states"][0]
        (group,) = [group for group in optimizer["param_groups"] if group["name"] == "guidance"]
        assert {float(optimizer["state"][index]["step"]) for index in group["params"]} == {STEPS}


def test_a_coarse_stage_by_picard_is_handed_over(systems):
    keys = ("threshold=1e30", "window=3")
    coarse = systems.train("magic3d-coarse-sd", "coarse", picard=keys)
    start = f"system.geometry_convert_from={coarse.folder}/ckpts/last.ckpt"
    fine = systems.train("magic3d-refine-sd", "fine", start, picard=keys)
    assert sum(fine.strides()) == STEPS and max(fine.strides()) > 1


def test_the_texture_stage_of_fantasia3d(systems):
    shape = systems.train("fantasia3d", "shape")

    def texture(config: Any) -> None:
        config.system.merge_with({
            "texture": True, "geometry_convert_from": f"{shape.folder}/ckpts/last.ckpt",
            "geometry_type": "tetrahedra-sdf-grid", "geometry": {"fix_geometry": True, "n_feature_dims": 3},
            "material": {"n_output_dims": 3, "color_activation": "sigmoid"},
        })  # fmt: skip
        for key in ("isosurface_coarse_to_fine", "shape_init", "shape_init_params"):
            config.system.geometry.pop(key)

    plain = systems.train("fantasia3d", "plain", change=texture)
    run = systems.train("fantasia3d", "run", picard=("threshold=0", "window=3"), change=texture)
    assert_as_step_by_step(run, plain)


def test_gaussians_by_score_distillation(systems):
    """Their number changes within what would be a window."""
    plain = systems.train("gaussian_splatting", "plain")
    run = systems.train("gaussian_splatting", "run", picard=("threshold=0", "window=4"))
    assert_as_step_by_step(run, plain)
    assert len({*plain.logs()["train/gaussians"]}) > 1


def with_vsd(config: Any) -> None:
    config.system.guidance_type = "turboprop-vsd-guidance"
    others = ("lambda_sds", "lambda_asd", "lambda_csd")
    loss = {key: value for key, value in config.system.loss.items() if key not in others}
    config.system.loss = {**loss, "lambda_vsd": 1.0, "lambda_lora": 1.0}
    optimizer = config.system.get("optimizer", {"name": "Adam", "args": {"lr": 0.001, "eps": 1.0e-15}})
    config.system.optimizer = {**optimizer, "params": {**optimizer.get("params", {}), "guidance": {"lr": 0.01}}}
    config.system.pop("evaluation", None)


def test_gaussians_with_a_teacher_that_learns(systems):
    plain = systems.train("gaussian_splatting", "plain", change=with_vsd)
    run = systems.train("gaussian_splatting", "run", picard=("threshold=0", "window=4"), change=with_vsd)
    assert_as_step_by_step(run, plain)
    assert any(name.startswith("guidance.") for name in run.checkpoint()["state_dict"])


@pytest.fixture()
def generator(tmp_path, monkeypatch, tiny_sd_folder, text_cache):
    """Trains the generator of configs/asd-3dconv.yaml with VSD in ASD's place: a folder's name, then keys."""
    monkeypatch.chdir(tmp_path)
    config = OmegaConf.load(CONFIG)
    with_vsd(config)
    for key in ("plus_ratio", "plus_random"):
        config.system.guidance.pop(key)
    config.system.optimizer.params = {"geometry": {}, "guidance": {"lr": 0.01}}
    OmegaConf.save(config, tmp_path / "config.yaml")
    small = [*SMALL, "trainer.max_steps=4", "trainer.limit_test_batches=0", library(tmp_path), model(tiny_sd_folder)]

    def train(folder: str, *extra: str, picard: tuple[str, ...] = ()) -> Trial:
        mixin = [f"system_type={config.system_type}:picard", *(f"system.picard.{key}" for key in picard)]
        given = [*small, f"exp_root_dir={folder}", *(mixin if picard else []), *extra]
        assert main(["--config", str(tmp_path / "config.yaml"), "--train", *given]) == 0
        (last,) = (tmp_path / folder).glob("*/*/ckpts/last.ckpt")
        return Trial(last.parents[1])

    return train


def test_a_generator_with_a_teacher_that_learns(generator):
    plain, run = generator("plain"), generator("run", picard=("threshold=0", "window=2"))
    assert_same(run.state(), plain.state())
    groups = [group["name"] for group in run.checkpoint()["optimizer_states"][0]["param_groups"]]
    assert groups == ["geometry", "guidance"]
    moments = plain.checkpoint()["optimizer_states"][0]["state"]
    assert all(float(state["step"]) == 4 for state in moments.values())
    resumed = generator("part", f"resume={run.folder}/ckpts/epoch=0-step=2.ckpt", picard=("threshold=0", "window=2"))
    assert_same(resumed.state(), run.state())
