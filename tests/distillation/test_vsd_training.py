"""Variational score distillation in whole runs: the guidance's weights train, are saved, and resume bit for bit."""

from pathlib import Path

import torch
from turboprop.distillation.variational import VariationalScoreDistillationGuidance

import threestudio
from tests.host.launches import ROOT
from tests.saved_states import assert_same

SMALL = [
    "system.prompt_processor.prompt=a red chair",
    "tag=t",
    "use_timestamp=false",
    "data.width=8",
    "data.height=8",
    "data.eval_width=8",
    "data.eval_height=8",
    "data.n_test_views=2",
    "data.n_val_views=1",
    "system.renderer.num_samples_per_ray=16",
    "system.geometry.pos_encoding_config.n_levels=4",
    "system.geometry.pos_encoding_config.log2_hashmap_size=10",
    "trainer.max_steps=4",
    "trainer.val_check_interval=3",
    "checkpoint.every_n_train_steps=2",
]
DREAMFUSION = [
    "system.guidance_type=turboprop-vsd-guidance",
    "system.geometry.pos_encoding_config.start_level=2",
    "system.loss.lambda_sds=0",
    "system.loss.lambda_vsd=1.",
    "system.loss.lambda_lora=1.",
]
PROLIFIC = ["data.batch_size=1", "data.resolution_milestones=[]", "system.visualize_samples=true"]


def arguments(folder: Path, system: str) -> list[str]:
    name = "pretrained_model_name_or_path"
    models = [f"system.prompt_processor.{name}={folder}", f"system.guidance.{name}={folder}"]
    if system == "prolificdreamer":
        return [*SMALL, *PROLIFIC, *models, f"system.guidance.{name}_lora={folder}"]
    return [*SMALL, *DREAMFUSION, *models]


def state(trial: Path) -> dict:
    checkpoint = torch.load(trial / "ckpts/last.ckpt", weights_only=True)
    return {key: checkpoint[key] for key in ("global_step", "state_dict", "optimizer_states")}


def check_own_weights(trial: Path) -> None:
    ours = {key: value for key, value in state(trial)["state_dict"].items() if key.startswith("guidance.")}
    assert ours and all(key.startswith(("guidance.lora.adapters.", "guidance.lora.camera_embedding.")) for key in ours)
    moved = [value for key, value in ours.items() if key.endswith("lora_B")]
    assert moved and all(value.abs().max() > 0 for value in moved)  # they start at zero
    logged = (trial / "csv_logs/version_0/metrics.csv").read_text().splitlines()[0]
    assert all(f"train/{name}" in logged for name in ("loss_vsd", "loss_lora", "grad_norm"))


def test_prolificdreamer_trains_and_shows_samples(launch_here, tiny_sd_folder, text_cache, tmp_path):
    options = [*arguments(tiny_sd_folder, "prolificdreamer"), "trainer.max_steps=2", "trainer.val_check_interval=2"]
    assert launch_here("--train", *options, config=str(ROOT / "configs/prolificdreamer.yaml")) == 0
    trial = tmp_path / "outputs/prolificdreamer/t"
    check_own_weights(trial)
    assert (trial / "save/it2-0-sample.png").is_file()


def test_samples_of_a_guidance_that_draws_none_are_refused_before_any_work(
    launch_here, tiny_sd_folder, capsys, tmp_path
):
    options = [*arguments(tiny_sd_folder, "prolificdreamer"), "system.guidance_type=stable-diffusion-guidance"]
    assert launch_here("--train", *options, config=str(ROOT / "configs/prolificdreamer.yaml")) == 2
    message = "system.visualize_samples: stable-diffusion-guidance draws no samples; expected false, got true"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_a_run_of_another_method_takes_it_and_resumes(launch_here, tiny_sd_folder, text_cache, tmp_path):
    config = str(ROOT / "configs/dreamfusion-sd.yaml")
    options = [*arguments(tiny_sd_folder, "dreamfusion-sd"), "system.optimizer.params.guidance.lr=0.001"]
    assert launch_here("--train", *options, "exp_root_dir=whole", config=config) == 0
    whole = tmp_path / "whole/dreamfusion-sd/t"
    check_own_weights(whole)

    part = [*options, "exp_root_dir=part"]
    assert launch_here("--train", *part, "trainer.max_steps=2", config=config) == 0
    last = "resume=part/dreamfusion-sd/t/ckpts/last.ckpt"
    assert launch_here("--train", *part, last, config=config) == 0
    assert_same(state(whole), state(tmp_path / "part/dreamfusion-sd/t"))
    assert launch_here("--test", *part, last, config=config) == 0


def groups_of(trial: Path) -> dict[str, dict]:
    (optimizer,) = state(trial)["optimizer_states"]
    return {group["name"]: group for group in optimizer["param_groups"]}


def test_without_an_optimizer_group_its_weights_have_one(launch_here, tiny_sd_folder, text_cache, tmp_path):
    config = str(ROOT / "configs/dreamfusion-sd.yaml")
    own = ["trainer.max_steps=2", "system.guidance.learning_rate=0.003"]
    options = [*arguments(tiny_sd_folder, "dreamfusion-sd"), *own]
    assert launch_here("--train", *options, config=config) == 0
    trial = tmp_path / "outputs/dreamfusion-sd/t"
    check_own_weights(trial)
    own = groups_of(trial)["guidance"]
    assert (own["lr"], own["eps"]) == (0.003, 1e-8)
    assert set(groups_of(trial)) == {"geometry", "background", "guidance"}  # the config's, and its own


@threestudio.register("test-vsd-without-a-group")
class WithoutGroup(VariationalScoreDistillationGuidance):
    """A guidance that trains and does not say how."""

    optimizer_group = None


def test_a_guidance_that_names_no_group_needs_one(launch_here, tiny_sd_folder, text_cache, capsys):
    config = str(ROOT / "configs/dreamfusion-sd.yaml")
    options = [*arguments(tiny_sd_folder, "dreamfusion-sd"), "system.guidance_type=test-vsd-without-a-group"]
    assert launch_here("--train", *options, config=config) != 0
    assert "system.optimizer.params: test-vsd-without-a-group has weights to train" in capsys.readouterr().err


def test_the_weights_of_both_losses_are_asked_for_before_any_work(launch_here, tiny_sd_folder, capsys, tmp_path):
    options = [key for key in arguments(tiny_sd_folder, "dreamfusion-sd") if "lambda_lora" not in key]
    assert launch_here("--train", *options, config=str(ROOT / "configs/dreamfusion-sd.yaml")) == 2
    message = "system.loss.lambda_lora: a weight of the loss of turboprop-vsd-guidance is required"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()
