"""Whole runs with the mixin: resuming, teachers, gradients that are not finite, logs, keys that are wrong."""

import pytest
import torch
from turboprop.picard.settings import picard_config

import threestudio
from launch import main
from tests.main_job import CONFIG, SMALL, library, model
from tests.picard.nan_guidance import NAN_GUIDANCE, NAN_STEP
from tests.picard.runs import (
    COMMON,
    GEOMETRY,
    ROOT,
    checkpoint,
    fit,
    logged,
    small_config,
    state_of,
)
from tests.saved_states import assert_same


@pytest.mark.parametrize("kind", ["nerf", "gaussians"])
def test_a_resumed_run_ends_as_one_that_was_not_stopped(kind, tmp_path):
    """Windows begin anew at checkpoints, so nothing of them need be saved."""
    keys, saves = ("window=4", "threshold=2"), "checkpoint.every_n_train_steps=6"
    whole = fit(kind, tmp_path / "whole", saves, picard=keys)
    fit(kind, tmp_path / "part", saves, picard=keys, steps=12)
    last = f"resume={tmp_path}/part/fit/run/ckpts/last.ckpt"
    resumed = fit(kind, tmp_path / "part", saves, last, picard=keys)
    assert_same(state_of(resumed), state_of(whole))
    for run in (whole, resumed):
        rows = run["picard"]["history"]
        ends = [row[0] + row[2] for row in rows]
        assert [row[0] for row in rows[1:]] == ends[:-1]  # each round goes on from where the last one came to
        assert {6, 12, 18} <= {row[0] for row in rows} and sum(row[2] for row in rows) == 20


def test_a_gradient_that_is_not_finite_costs_its_step_alone(tmp_path):
    plain = fit("dmtet", tmp_path / "plain", NAN_GUIDANCE, steps=14)
    run = fit("dmtet", tmp_path / "run", NAN_GUIDANCE, picard=("window=5", "threshold=0"), steps=14)
    assert_same(state_of(run), state_of(plain))
    wide = fit("dmtet", tmp_path / "wide", NAN_GUIDANCE, picard=("window=5", "threshold=1e30"), steps=14)
    assert all(bool(torch.isfinite(value).all()) for value in wide["state_dict"].values())
    assert all(float(s["step"]) == 13 for s in wide["optimizer_states"][0]["state"].values())
    assert logged(tmp_path / "wide", "train/skipped_steps")[-1] == 1
    strides = {row[0]: row[2] for row in wide["picard"]["history"]}
    assert NAN_STEP in strides  # a window was cut before the step, and it was computed again at its state


def test_a_distillation_is_the_same_at_threshold_zero(tmp_path, monkeypatch, tiny_sd_folder, text_cache):
    monkeypatch.chdir(tmp_path)
    from omegaconf import OmegaConf

    config = OmegaConf.load(ROOT / "configs/asd-nerf.yaml")
    del config.system["evaluation"]
    config.system.guidance.pretrained_model_name_or_path = str(tiny_sd_folder)
    config.system.prompt_processor.pretrained_model_name_or_path = str(tiny_sd_folder)
    OmegaConf.save(config, tmp_path / "config.yaml")
    small = ["data.batch_size=1", "data.width=8", "data.height=8", "data.eval_width=8", "data.eval_height=8",
             "data.n_test_views=1", "data.n_val_views=1", "trainer.max_steps=4"]  # fmt: skip
    ends = []
    for name, system in (("plain", "dreamfusion-system"), ("run", "dreamfusion-system:picard")):
        picard = ["system.picard.window=3", "system.picard.threshold=0"] if name == "run" else []
        given = [f"exp_root_dir={tmp_path / name}", f"system_type={system}", *picard]
        command = [
            "--config",
            str(tmp_path / "config.yaml"),
            "--train",
            *COMMON,
            *GEOMETRY["nerf"][:-1],
            *small,
            *given,
        ]
        assert main(command) == 0
        ends.append(checkpoint(tmp_path / name))
    assert_same(state_of(ends[1]), state_of(ends[0]))


def test_what_is_logged_is_of_the_true_step(tmp_path):
    fit("nerf", tmp_path / "plain", steps=12)
    fit("nerf", tmp_path / "run", picard=("window=4", "threshold=0"), steps=12)
    for name in ("train/loss_rgb", "train/psnr", "train_params/lambda_rgb"):
        assert logged(tmp_path / "run", name) == logged(tmp_path / "plain", name)
        assert len(logged(tmp_path / "run", name)) == 12
    assert logged(tmp_path / "run", "picard/stride") == [1.0] * 12
    assert logged(tmp_path / "run", "picard/threshold") == [0.0] * 12
    save = tmp_path / "run/fit/run/save"
    assert len((save / "picard.csv").read_text().splitlines()) == 13 and (save / "picard.png").stat().st_size > 5000


def test_other_mixins_go_with_it(tmp_path):
    found = threestudio.find("dreamfusion-system:turboprop-evaluated,turboprop-picard")
    assert {"picard", "evaluation"} <= set(found.Config.__dataclass_fields__)
    assert "picard" not in threestudio.find("dreamfusion-system").Config.__dataclass_fields__


def test_dreampropellers_block_is_understood():
    config = picard_config({"speedup": {"P": 7, "threshold": 30, "ema_decay": 0.8, "adaptivity_type": "mean"}})
    assert (config.window, config.threshold, config.ema_decay, config.rule) == (7, 30, 0.8, "mean")
    assert (config.distance, config.guess) == ("mean_square", "copy")
    assert picard_config({"speedup": {"P": 3}}).rule == "median" and picard_config({}).rule == "fixed"
    assert picard_config({}).threshold == 3


@pytest.mark.parametrize(
    "given, message",
    [
        ({"windw": 7}, "unknown key 'windw'.*window"),
        ({"window": 0}, "system.picard.window: expected at least 1, got 0"),
        ({"threshold": -1.0}, "system.picard.threshold: expected at least 0, got -1.0"),
        ({"ema_decay": 1.5}, "system.picard.ema_decay: expected from 0 to 1, got 1.5"),
        ({"rule": "mode"}, "system.picard.rule: expected one of fixed, mean, median, got 'mode'"),
        ({"distance": "far"}, "system.picard.distance: expected one of update, mean_square, got 'far'"),
        ({"guess": "best"}, "system.picard.guess: expected one of copy, zero_gradient, last_gradient, got 'best'"),
        ({"exchange": "int8"}, "system.picard.exchange: expected one of float32, bfloat16, float16, got 'int8'"),
        ({"speedup": {"Q": 7}}, "system.picard.speedup.Q: expected one of P, threshold, ema_decay, adaptivity_type"),
    ],
)
def test_impossible_settings_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        picard_config(given)


CLIPPING = "system.optimizer={name: Adan, args: {betas: [0.98, 0.92, 0.99], max_grad_norm: 1.0}}"


NOT_FOLLOWED = ["trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=1.0", "trainer.precision=bf16-true"]


@pytest.mark.parametrize("given", [*NOT_FOLLOWED, CLIPPING])
def test_what_a_trainer_must_not_do_is_named(given, tmp_path, capsys):
    config = small_config("nerf", tmp_path)
    arguments = ["--config", config, "--train", *COMMON, *GEOMETRY["nerf"], "system_type=dreamfusion-system:picard"]
    assert main([*arguments, f"exp_root_dir={tmp_path}", "data.size=8", "data.n_train_views=2", given]) == 2
    assert given.split("=")[0] in capsys.readouterr().err


def test_an_amortized_generator_is_the_same_at_threshold_zero(tmp_path, monkeypatch, tiny_sd_folder, text_cache):
    monkeypatch.chdir(tmp_path)
    shipped = ["--config", CONFIG, "--train", library(tmp_path), model(tiny_sd_folder), *SMALL]
    ends = []
    for name in ("", ":picard"):
        system = f"system_type=turboprop-multiprompt-generator-system{name}"
        keys = ["system.picard.threshold=0", "system.picard.window=2"] if name else []
        folder = f"exp_root_dir={tmp_path / ('run' + name.strip(':'))}"
        assert main([*shipped, system, folder, *keys]) == 0
        (last,) = (tmp_path / ("run" + name.strip(":"))).glob("*/*/ckpts/last.ckpt")
        ends.append(torch.load(last, weights_only=True))
    assert_same(state_of(ends[1]), state_of(ends[0]))
