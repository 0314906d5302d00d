"""configs/dreamfusion-sd.yaml, whole: trained, resumed, tested and exported at tiny size."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from tests.host.launches import ROOT
from tests.saved_states import assert_same
from tests.tiny_stable_diffusion import write_tiny_stable_diffusion

CONFIG = str(ROOT / "configs/dreamfusion-sd.yaml")
SMALL = [
    "system.prompt_processor.prompt=a red chair",
    "tag=t",
    "use_timestamp=false",
    "data.width=8",
    "data.height=8",
    "data.eval_width=8",
    "data.eval_height=8",
    "data.n_test_views=3",
    "system.renderer.num_samples_per_ray=24",
    "system.geometry.pos_encoding_config.n_levels=4",
    "system.geometry.pos_encoding_config.start_level=2",
    "system.geometry.pos_encoding_config.log2_hashmap_size=10",
    "trainer.max_steps=4",
    "trainer.val_check_interval=3",
    "checkpoint.every_n_train_steps=2",
]
TRIAL = "dreamfusion-sd/t"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_stable_diffusion(tmp_path_factory.mktemp("models") / "tiny-sd")


@pytest.fixture()
def arguments(model_folder: Path) -> list[str]:
    name = "pretrained_model_name_or_path"
    return [
        *SMALL,
        f"system.prompt_processor.{name}={model_folder}",
        f"system.guidance.{name}={model_folder}",
    ]


def state(trial: Path) -> dict:
    checkpoint = torch.load(trial / "ckpts/last.ckpt", weights_only=True)
    return {key: checkpoint[key] for key in ("global_step", "state_dict", "optimizer_states")}


def test_trains_resumes_and_writes_what_it_promises(launch_here, arguments, tmp_path):
    assert launch_here("--train", *arguments, "exp_root_dir=whole", config=CONFIG) == 0
    whole = tmp_path / "whole" / TRIAL
    saved = {p.name for p in (whole / "save").rglob("*")}
    assert {"it3-0.png", "it4-test", "0.png", "1.png", "2.png", "it4-test.mp4"} <= saved
    assert not any("guidance" in key for key in state(whole)["state_dict"])
    logged = (whole / "csv_logs/version_0/metrics.csv").read_text().splitlines()[0]
    for name in ("loss_sds", "loss_orient", "loss_sparsity", "loss_opaque", "grad_norm"):
        assert f"train/{name}" in logged
    assert "train_params/lambda_orient" in logged

    fewer = ["data.n_test_views=2", f"resume=whole/{TRIAL}/ckpts/last.ckpt"]
    assert launch_here("--test", *arguments, "exp_root_dir=whole", *fewer, config=CONFIG) == 0
    assert {p.name for p in (whole / "save/it4-test").iterdir()} == {"0.png", "1.png"}  # as many as the video has

    part = [*arguments, "exp_root_dir=part"]
    assert launch_here("--train", *part, "trainer.max_steps=2", config=CONFIG) == 0
    last = f"resume=part/{TRIAL}/ckpts/last.ckpt"
    assert launch_here("--train", *part, last, config=CONFIG) == 0
    assert_same(state(whole), state(tmp_path / "part" / TRIAL))


def test_exports(launch_here, arguments, tmp_path):
    assert launch_here("--train", *arguments, "trainer.max_steps=1", config=CONFIG) == 0
    export = [
        f"resume=outputs/{TRIAL}/ckpts/last.ckpt",
        "system.exporter.save_uv=false",
        "system.exporter.save_texture=false",
        "system.geometry.isosurface_resolution=16",
        "system.geometry.isosurface_threshold=0.5",
    ]
    assert launch_here("--export", *arguments, *export, config=CONFIG) == 0
    names = {p.name for p in (tmp_path / f"outputs/{TRIAL}/save/it1-export").iterdir()}
    assert "model.obj" in names


def test_dry_run_opens_the_model_and_writes_nothing(launch_here, arguments, tmp_path, capsys):
    assert launch_here("--dry-run", *arguments, config=CONFIG) == 0
    assert OmegaConf.create(capsys.readouterr().out).system.prompt_processor.prompt == "a red chair"
    assert list(tmp_path.iterdir()) == []
    missing = "system.guidance.pretrained_model_name_or_path=/nowhere/model"
    assert launch_here("--dry-run", *arguments, missing, config=CONFIG) == 2
    assert "/nowhere/model" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change, message",
    [
        ("system.prompt_processor.prompt=''", "prompt"),
        ("system.guidance.pretrained_model_name_or_path=/nowhere", "/nowhere"),
        ("system.guidance_type=stable-difusion-guidance", "stable-diffusion-guidance"),
        (
            "system.geometry_type=implicit-volum",
            "system.geometry_type: unknown registered name 'implicit-volum'; nearest",
        ),
        ("system.geometry.radius=0", "error: system.geometry.radius: expected > 0, got 0"),
        ("system.guidance.max_step_percent=2", "error: system.guidance"),
        ("system.exporter.fmt=gltf", "error: system.exporter.fmt: expected one of"),
        ("system.exporter.simplify_to=-1", "error: system.exporter.simplify_to: expected 0 (off) or at least 4"),
        (
            "system.geometry.mlp_network_config={otype: VanillaMLP, n_neurons: 0}",
            "n_neurons: expected a whole number from 1, got 0 (int)",
        ),
        ("system.geometry_type=''", "system.geometry_type: a registered name is required"),
        ("system.guidance.guidance_scal=3", "unknown key 'system.guidance.guidance_scal'"),
    ],
)
def test_bad_input_before_training(launch_here, arguments, tmp_path, capsys, change, message):
    assert launch_here("--train", *arguments, change, config=CONFIG) == 2
    (error,) = [e for e in capsys.readouterr().err.splitlines() if e.startswith("error: ")]
    assert message in error
    assert not (tmp_path / "outputs" / TRIAL).exists()


def test_a_prompt_is_required(launch_here, capsys):
    assert launch_here("--train", config=CONFIG) == 2
    assert "system.prompt_processor.prompt" in capsys.readouterr().err


def test_every_needed_lambda_is_asked_for_first(launch_here, arguments, capsys, tmp_path):
    config = OmegaConf.load(CONFIG)
    del config.system.loss["lambda_sparsity"]
    config.system.loss["lambda_sparsty"] = 1.0
    OmegaConf.save(config, tmp_path / "config.yaml")
    assert launch_here("--train", *arguments, config="config.yaml") == 2
    assert "system.loss.lambda_sparsity: a value is required; nearest: lambda_sparsty" in (capsys.readouterr().err)
