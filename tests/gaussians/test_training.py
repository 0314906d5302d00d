"""Whole runs through the command line: fitting, resuming, exporting, and what is refused."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from launch import main
from tests.saved_states import assert_same

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(Path(__file__).parent / "tiny.yaml")


@pytest.fixture()
def launch(tmp_path, monkeypatch):
    """Runs the command line in this process, in an empty working folder; gives the exit code."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: main(["--config", CONFIG, *arguments])


def state_of(folder: Path) -> dict:
    checkpoint = torch.load(folder / "tiny/run/ckpts/last.ckpt", weights_only=True)
    return {key: checkpoint[key] for key in ("global_step", "state_dict", "optimizer_states")}


def logged(folder: Path, name: str) -> list[float]:
    (file,) = folder.glob("tiny/run/csv_logs/version_0/metrics.csv")
    return [float(row[name]) for row in csv.DictReader(file.open()) if row.get(name)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run of 40 steps."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(["--config", CONFIG, "--train", f"exp_root_dir={folder}"]) == 0
    return folder


def test_a_run_fits_and_changes_the_number(whole):
    counts, losses = logged(whole, "train/gaussians"), logged(whole, "train/loss_rgb")
    assert len(counts) == 40 and counts[0] == 60 and len(set(counts)) > 4 and max(counts) <= 150
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    for name in ("position", "opacity", "scales", "tv_loss", "depth_tv_loss", "sparsity", "opaque"):
        assert len(logged(whole, f"train/loss_{name}")) == 40
    state = state_of(whole)
    n = state["state_dict"]["geometry.means"].shape[0]
    assert n == counts[-1]
    (optimizer,) = state["optimizer_states"]
    shapes = [s["exp_avg"].shape[0] for s in optimizer["state"].values()]
    assert shapes == [n] * 6 and all(float(s["step"]) == 40 for s in optimizer["state"].values())
    names = [group["name"] for group in optimizer["param_groups"]]
    assert names == [
        f"geometry.{x}" for x in ("means", "log_scales", "quaternions", "opacity_logits", "sh_dc", "sh_rest")
    ]
    assert optimizer["param_groups"][0]["lr"] == pytest.approx(0.001, rel=0.1)
    assert optimizer["param_groups"][5]["lr"] == pytest.approx(0.001)
    assert (whole / "tiny/run/save/it40-test.mp4").is_file()


@pytest.mark.parametrize("stop", [10])
def test_stopped_and_resumed_runs_end_the_same(launch, whole, tmp_path, stop):
    """Right after a step that has cloned."""
    part = f"exp_root_dir={tmp_path}"
    assert launch("--train", part, f"trainer.max_steps={stop}", "trainer.limit_test_batches=1") == 0
    last = f"resume={tmp_path}/tiny/run/ckpts/last.ckpt"
    assert launch("--train", part, last, "trainer.limit_test_batches=1") == 0
    assert_same(state_of(whole), state_of(tmp_path))


def test_a_killed_run_ends_the_same(launch, whole, tmp_path):
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), "--config", CONFIG, "--train", f"exp_root_dir={tmp_path}",
         "checkpoint.every_n_train_steps=1", "trainer.max_steps=2000"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    folder, deadline = tmp_path / "tiny/run/ckpts", time.monotonic() + 120
    target = random.Random(0).randint(11, 20)
    while not (folder / f"epoch=0-step={target}.ckpt").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    killed_at = torch.load(folder / "last.ckpt", weights_only=True)["global_step"]
    assert target - 1 <= killed_at < 40
    assert (
        launch("--train", f"exp_root_dir={tmp_path}", f"resume={folder}/last.ckpt", "trainer.limit_test_batches=1") == 0
    )
    assert_same(state_of(whole), state_of(tmp_path))


@pytest.mark.parametrize(
    "exporter, files",
    [
        (["system.exporter.save_video=false"], {"model.obj", "point_cloud.ply"}),
        (["system.exporter_type=mesh-exporter", "system.exporter.fmt=obj"], {"model.obj"}),
        (["system.exporter_type=mesh-exporter", "system.exporter.fmt=3dgs-ply"], {"model.ply"}),
        (["system.exporter.fmt=stl", "system.exporter.save_video=false"], {"model.stl"}),
        (["system.exporter.fmt=3dgs-ply", "system.exporter.save_video=false"], {"model.ply"}),
    ],
)
def test_exports(launch, whole, tmp_path, exporter, files):
    import trimesh
    from turboprop.gaussians.ply import read_3dgs_ply

    checkpoint = f"resume={whole}/tiny/run/ckpts/last.ckpt"
    assert launch("--export", checkpoint, f"exp_root_dir={tmp_path}", *exporter) == 0
    folder = tmp_path / "tiny/run/save/it40-export"
    assert {path.name for path in folder.iterdir()} == files
    means = state_of(whole)["state_dict"]["geometry.means"]
    for path in folder.glob("*.ply"):
        assert torch.equal(read_3dgs_ply(path)["means"], means)
    for path in folder.glob("*.obj"):
        mesh = trimesh.load(path, process=True)
        assert mesh.is_watertight and mesh.volume > 0 and mesh.visual.kind == "vertex"


def test_score_distillation(tiny_sd_folder, text_cache, tmp_path, monkeypatch):
    """The shipped configs with a tiny teacher; the background's network trains with the Gaussians."""
    monkeypatch.chdir(ROOT)
    given = [
        f"system.prompt_processor.pretrained_model_name_or_path={tiny_sd_folder}",
        f"system.guidance.pretrained_model_name_or_path={tiny_sd_folder}",
        "system.prompt_processor.prompt=a red car",
        "data.height=8", "data.width=8", "data.eval_height=8", "data.eval_width=8",
        "data.n_test_views=2", "system.geometry.init_num_pts=40", "trainer.max_steps=2", f"exp_root_dir={tmp_path}",
        "trainer.enable_progress_bar=false", "use_timestamp=false",
    ]  # fmt: skip
    for name in ("gaussian_splatting", "gaussian_splatting_background"):
        assert main(["--config", f"configs/{name}.yaml", "--train", *given]) == 0
    path = tmp_path / "gs-sds-generation-background/a_red_car/ckpts/last.ckpt"
    (optimizer,) = torch.load(path, weights_only=True)["optimizer_states"]
    assert optimizer["param_groups"][-1]["name"] == "background" and optimizer["param_groups"][-1]["lr"] == 0.001
    assert all(bool(s["exp_avg"].abs().sum() > 0) for s in optimizer["state"].values() if s["exp_avg"].dim() == 2)


def test_a_guidance_with_weights_trains_beside_gaussians(tiny_sd_folder, text_cache, tmp_path, monkeypatch):
    """VSD in ASD's place: its adapters are in the optimizer and in the checkpoint."""
    monkeypatch.chdir(ROOT)
    networks = ("pretrained_model_name_or_path", "pretrained_model_name_or_path_lora")
    given = [
        f"system.prompt_processor.pretrained_model_name_or_path={tiny_sd_folder}", f"exp_root_dir={tmp_path}",
        f"system.guidance={{{', '.join(f'{key}: {tiny_sd_folder}' for key in networks)}}}",
        "data.height=8", "data.width=8", "data.batch_size=1", "data.eval_height=8", "data.eval_width=8",
        "data.n_test_views=1",
        "system.geometry.init_num_pts=50", "system.geometry.isosurface_resolution=16",
        "system_type=turboprop-gaussian-splatting-system", "system.guidance_type=turboprop-vsd-guidance",
        "system.loss={lambda_vsd: 1.0, lambda_lora: 1.0}", "system.optimizer.params.guidance.lr=0.01",
        "trainer.max_steps=2", "trainer.enable_progress_bar=false", "use_timestamp=false", "tag=vsd",
    ]  # fmt: skip
    config = (ROOT / "configs" / "asd-gaussians.yaml").read_text()
    start, end = config.index("  evaluation:"), config.index("  geometry_type")
    guidance, loss = config.index("  guidance:"), config.index("  exporter")
    without = config[:start] + config[end:guidance] + config[loss:]
    start, end = without.index("  loss:"), without.index("  optimizer")
    (tmp_path / "vsd.yaml").write_text(without[:start] + without[end:])
    assert main(["--config", str(tmp_path / "vsd.yaml"), "--train", *given]) == 0
    state = torch.load(tmp_path / "asd-gaussians/vsd/ckpts/last.ckpt", weights_only=True)
    adapters = {name: value for name, value in state["state_dict"].items() if "lora_B" in name}
    assert adapters and any(bool(value.abs().sum() > 0) for value in adapters.values())  # they begin at zero
    (optimizer,) = state["optimizer_states"]
    assert "guidance" in [group["name"] for group in optimizer["param_groups"]]


def test_the_mixin_trains_gaussians_in_another_system(launch, tmp_path):
    options = ["system_type=dreamfusion-system:turboprop-gaussian-training", "trainer.max_steps=6"]
    zeros = [
        "system.loss.lambda_sds=0",
        "system.loss.lambda_orient=0",
        "system.loss.lambda_sparsity=0",
        "system.loss.lambda_opaque=0",
    ]
    config = Path(CONFIG).read_text()
    for name in ("position", "opacity", "scales", "tv_loss", "depth_tv_loss", "sparsity", "opaque"):
        config = config.replace(f"    lambda_{name}: 0.01\n", "")
    (tmp_path / "other.yaml").write_text(config)
    assert main(["--config", str(tmp_path / "other.yaml"), "--train", *options, *zeros]) == 0
    assert state_of(tmp_path / "outputs")["state_dict"]["geometry.means"].shape[0] != 60


@pytest.mark.parametrize(
    "override, message",
    [
        ("system.geometry_type=implicit-volume", "geometry"),
        ("system.loss.lambda_positions=1", "lambda_positions"),
        ("system.optimizer.params.geometry.lr=0.1", "optimizer.params.geometry: the learning rates of Gaussians"),
        ("system.scheduler.name=ExponentialLR", "system.scheduler.args.gamma: a value is required"),
        ("system.geometry.geometry_convert_from=nowhere.ply", "no file nowhere.ply"),
    ],
)
def test_what_is_wrong_is_one_line_before_any_work(launch, tmp_path, capsys, override, message):
    assert launch("--train", override) != 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "outputs/tiny/run").exists()


def test_rounded_weights_are_refused(launch, capsys):
    assert launch("--train", "trainer.precision=bf16-true") == 2
    message = "trainer.precision: Gaussians train in 32 or bf16-mixed, got bf16-true"
    assert message in capsys.readouterr().err
