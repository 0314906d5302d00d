"""The training system through the command line: steps, resuming, averaged weights, files, and what it refuses."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from turboprop.novelview import latent_cache
from turboprop.novelview.loading import load_novel_view_model
from turboprop.novelview.model import NovelViewSettings
from turboprop.novelview.starting_point import starting_model
from turboprop.novelview.teacher import NovelViewTeacher

from launch import main

ROOT = Path(__file__).resolve().parents[2]
# Rates that do not depend on the number of steps, so that a run can be cut in two.
RATES = "system.scheduler={name: LinearLR, interval: step, args: {start_factor: 0.1, total_iters: 4}}"

pytestmark = pytest.mark.usefixtures("text_cache")


class Launch:
    """Runs the config at the smallest sizes; gives the trial's folder, or the exit code where it fails."""

    def __init__(self, root: Path, renders: Path, start: Path, encoder: Path) -> None:
        self.root, self.renders, self.start, self.encoder = root, renders, start, encoder

    def arguments(self, *overrides: str, mode: str = "--train", tag: str = "trial") -> list[str]:
        small = [
            f"data.root={self.renders}", "data.image_size=16", "data.batch_size=3", "data.validation_pairs=4",
            "data.validation_batch_size=4", "data.validation_share=0.3",
            f"system.start_from={self.start}", f"system.image_encoder={self.encoder}",
            "system.model.feature_layers=[0,3]", "system.validation_bins=2", "system.sampling.num_steps=2",
            "system.sampling.grid=2", "system.sampling.test=3", "trainer.max_steps=4", "trainer.val_check_interval=2",
            "trainer.log_every_n_steps=1", "trainer.enable_progress_bar=false", "checkpoint.every_n_train_steps=2",
            "system.scheduler.milestones=[2]", f"exp_root_dir={self.root}", "use_timestamp=false", f"tag={tag}",
        ]  # fmt: skip
        return ["--config", "configs/train-novelview.yaml", mode, *small, *overrides]

    def trial(self, tag: str = "trial") -> Path:
        return self.root / "train-novelview" / tag

    def __call__(self, *overrides: str, mode: str = "--train", tag: str = "trial", fails: bool = False):
        code = main(self.arguments(*overrides, mode=mode, tag=tag))
        if fails:
            return code
        assert code == 0
        return self.trial(tag)


@pytest.fixture()
def launch(tmp_path, tiny_renders, tiny_sd_folder, tiny_dino_folder, monkeypatch) -> Launch:
    monkeypatch.chdir(ROOT)
    return Launch(tmp_path / "out", tiny_renders, tiny_sd_folder, tiny_dino_folder)


def last(trial: Path) -> dict:
    return torch.load(trial / "ckpts" / "last.ckpt", weights_only=True)


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_run_writes_a_model_that_teaches(launch, tiny_sd_folder):
    trial = launch()
    state = last(trial)["state_dict"]
    assert not any(".vae." in key or "_encoder." in key for key in state)
    assert any(key.startswith("average.injection") for key in state)
    folder = trial / "save" / "it4-model"
    model = load_novel_view_model(str(folder))
    assert model.settings.feature_layers == [0, 3] and model.settings.tokens == "patches"
    saved = model.unet.state_dict()["conv_in.weight"]
    assert torch.equal(saved, state["average.unet.conv_in.weight"])
    assert not torch.equal(saved, state["model.unet.conv_in.weight"])
    assert saved[:, 4:].abs().sum() > 0  # the input view's channels, zero at the start, have learned
    assert model.injection.projections[0].weight.abs().sum() > 0
    teacher = NovelViewTeacher.from_pretrained(str(folder))
    cameras = (torch.tensor([10.0]), torch.tensor([30.0]), torch.tensor([1.6]))
    condition = teacher.condition(torch.rand(1, 3, 16, 16), 0.0, 0.0, 1.6, *cameras)
    assert condition.tokens.shape[1] == 4 and len(condition.features) == 2
    noise = teacher.predict_noise(torch.randn(1, 4, 8, 8), torch.tensor([500]), condition)
    assert bool(torch.isfinite(noise).all())
    report = json.loads((trial / "save" / "it4-test.json").read_text())
    assert report["views"] == 3 and set(report["mean"]) >= {"psnr", "ssim"} and "lpips" in report["how"]
    assert (trial / "save" / "it2-val.png").is_file() and (trial / "save" / "it4-test.png").is_file()
    log = (trial / "csv_logs" / "version_0" / "metrics.csv").read_text().splitlines()[0]
    logged = {"train/loss", "train/mean_timestep", "train/broken_folders", "val/loss", "val/loss_bin_00"}
    assert logged <= set(log.split(","))


def test_a_resumed_run_ends_with_the_same_weights(launch):
    whole = last(launch(RATES, tag="whole"))
    trial = launch(RATES, "trainer.max_steps=2", tag="parts")
    parts = last(launch(RATES, f"resume={trial}/ckpts/last.ckpt", tag="parts"))
    assert whole["global_step"] == parts["global_step"] == 4
    assert same(whole["state_dict"], parts["state_dict"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.precision=bf16-mixed", "system.frozen_precision=bfloat16", "system.gradient_checkpointing=true"],
        ["trainer.accumulate_grad_batches=2", "trainer.max_steps=2", "system.channels_last=true"],
        ["system.model.feature_layers=[]", "system.timesteps.sampler=uniform", "system.ema_decay=0"],
        ["system.timesteps.mean=[0,1000,500,4]", "system.min_snr_gamma=5", "system.noise_shift=8"],
        ["data.num_workers=1", "system.photometric.probability=0", "system.model.null_condition=zero123"],
    ],
    ids=["bfloat16", "accumulation", "plain", "schedule", "workers"],
)
def test_each_part_can_be_switched(launch, overrides):
    trial = launch(*overrides)
    state = last(trial)["state_dict"]
    assert all(bool(torch.isfinite(value).all()) for value in state.values())
    assert any(key.startswith("average.") for key in state) == ("system.ema_decay=0" not in overrides)
    assert any("injection" in key for key in state) == ("system.model.feature_layers=[]" not in overrides)


def test_zero123_is_gone_on_from(launch, tiny_zero123_folder):
    """Its own encoder and projection, with injection of another encoder: step 0 is zero123."""
    trial = launch(
        f"system.start_from={tiny_zero123_folder}", "system.image_encoder=''", "system.model.tokens=pooled",
        "system.model.normalize_tokens=false", "system.model.feature_layers=[0]", "trainer.max_steps=1",
        "trainer.val_check_interval=1",
    )  # fmt: skip
    model = load_novel_view_model(str(trial / "save" / "it1-model"))
    assert model.image_encoder.kind.model_class == "CLIPVisionModelWithProjection"


@torch.no_grad()
def test_a_start_from_zero123_keeps_what_it_has(tiny_zero123_folder, tiny_dino_folder):
    settings = NovelViewSettings(feature_layers=(1, 2))
    start = load_novel_view_model(str(tiny_zero123_folder))
    model = starting_model(str(tiny_zero123_folder), settings, feature_encoder=str(tiny_dino_folder)).eval()
    assert same(model.tokens.state_dict(), start.tokens.state_dict())
    images, pose = torch.rand(2, 3, 16, 16) * 2 - 1, torch.rand(2, 4)
    noisy, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([900, 10])
    ours, theirs = (one(noisy, timesteps, one.condition(one.encode_view(images), pose)) for one in (model, start))
    assert torch.equal(ours, theirs)


def test_cached_latents_are_trained_on(launch, tiny_renders, tiny_sd_folder, tmp_path):
    cache = tmp_path / "cache"
    assert latent_cache.main(["--root", str(tiny_renders), "--model", str(tiny_sd_folder), "--output", str(cache)]) == 0
    cached, plain = last(launch(f"data.latent_cache={cache}", tag="cached")), last(launch(tag="plain"))
    ours, theirs = (state["state_dict"]["model.unet.conv_in.weight"] for state in (cached, plain))
    assert not torch.equal(ours, theirs)
    torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=0.1)  # the cache is in float16


def test_a_model_is_exported_from_a_checkpoint(launch, tmp_path):
    trial = launch("trainer.max_steps=2")
    folder = trial / "save" / "it2-model"
    before = (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    launch(f"resume={trial}/ckpts/last.ckpt", mode="--export")
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_two_processes_train_one_model(launch):
    """Each has its own pairs; the weights stay one and the averaged model is the first process's."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "launch.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    resume = f"resume={launch.trial('parts')}/ckpts/last.ckpt"
    for tag, extra in (("whole", ()), ("parts", ("trainer.max_steps=2",)), ("parts", (resume,))):
        command = [*torchrun, *launch.arguments(RATES, *extra, tag=tag)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    state = last(launch.trial("whole"))["state_dict"]
    assert same(state, last(launch.trial("parts"))["state_dict"])
    alone = last(launch(RATES, tag="alone"))
    assert not same(state, alone["state_dict"])
    model = load_novel_view_model(str(launch.trial("whole") / "save" / "it4-model"))
    assert torch.equal(model.unet.conv_in.weight, state["average.unet.conv_in.weight"])


@pytest.mark.parametrize(
    "override,message",
    [
        ("system.start_from=''", "system.start_from: expected a model folder"),
        ("system.start_from=nowhere/at/all", "system.start_from: no folder nowhere/at/all"),
        ("system.start_from=nowhere.ckpt", "system.start_from: no checkpoint nowhere.ckpt; give the path"),
        ("system.start_from=nowhere.safetensors", "system.start_from: no checkpoint nowhere.safetensors; give"),
        ("system.image_encoder=''", "system.image_encoder: .* has no image encoder of its own"),
        ("system.model.tokens=words", "system.model.tokens: expected one of pooled, patches, got 'words'"),
        ("trainer.precision=bf16-true", "trainer.precision: expected 32, 16-mixed or bf16-mixed, got bf16-true"),
        ("system.model.feature_layers=3", "feature_layers: expected .*list"),
        ("system.image_encoder=configs", "system.image_encoder: cannot read configs/config.json"),
        ("system.feature_encoder=configs", "system.feature_encoder: cannot read configs/config.json"),
        ("system.timesteps.mean=5000", "timesteps.mean, timesteps.std: a share of .* got mean 5000 and std 200"),
        ("system.sampling.num_steps=0", "system.sampling.num_steps: expected 1 to 1000, got 0"),
        ("system.sampling.num_steps=1001", "system.sampling.num_steps: expected 1 to 1000, got 1001"),
        ("system.sampling.grid=-1", "system.sampling.grid: expected at least 0, got -1"),
        ("system.sampling.eta=1.5", "system.sampling.eta: expected a number within 0 to 1, got 1.5"),
        ("system.sampling.lpips=resnet", "system.sampling.lpips: expected one of vgg, alex, squeeze"),
        ("system.model.feature_layers=[0,11]", "feature_layers: the encoder has layers 0 to 3, got 11"),
        ("system.model.image_encoder_size=30", "image_encoder_size: expected a multiple of .* 14, got 30"),
        ("system.timesteps.sampler=gaussian", "system.timesteps.sampler: expected one of"),
        ("system.timesteps.means=3", "unknown key 'system.timesteps.means'"),
        ("system.photometric.hue=0.9", "system.photometric.hue: expected a number within 0 to 0.5"),
        ("system.condition_dropout=0.5", "system.condition_dropout: expected a number within 0 to 1/3"),
        ("system.noise_shift=0", "noise_shift: expected a number above 0"),
        ("system.frozen_precision=int8", "system.frozen_precision: expected one of"),
        ("data.image_size=32", "data.image_size: the model takes pictures of 16 pixels, got 32"),
        ("data.root=nowhere", "data.root: no folder nowhere"),
        ("data.latent_cache=nowhere", "data.latent_cache: no latent cache in nowhere"),
    ],
)
def test_bad_input_is_one_line(launch, override, message, capsys):
    assert launch(override, fails=True) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and re.search(message, errors[0]), errors


def test_a_fused_optimizer_and_clipping_in_mixed_precision_are_one_line(launch, capsys):
    given = ("trainer.precision=bf16-mixed", "system.optimizer.args.fused=true")
    assert launch(*given, "trainer.gradient_clip_val=1.0", fails=True) == 2
    assert "error: system.optimizer.args.fused: a fused optimizer does not go with" in capsys.readouterr().err
    assert launch(*given, "trainer.gradient_clip_val=0", "trainer.max_steps=1").is_dir()
