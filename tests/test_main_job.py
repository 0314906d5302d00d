"""configs/asd-3dconv.yaml at tiny size, by the command line: trained, killed, resumed, exported, and fed bad input."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh
from PIL import Image

import threestudio
from tests.main_job import CONFIG, PROMPTS, ROOT, TEXT_DIM, TRIAL, column, library, model, state_of
from tests.saved_states import assert_same

SLUGS = ["a_red_car", "a_blue_chair", "a_red_chair"]


def files_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_run_leaves_pictures_and_meshes_of_each_prompt(launch_job):
    assert launch_job("--train") == 0
    save = TRIAL / "save"
    sheet = Image.open(save / "it3-test.png")
    assert sheet.size[0] == 2 * 3 * 8 and sheet.size[1] == 2 * (8 + 14)  # two columns of three views
    assert (save / "it2-val.png").is_file() and (save / "it3-curves.png").is_file()
    for slug in SLUGS:
        assert {p.name for p in (save / "it3-test" / slug).iterdir()} == {"0.png", "1.png", "2.png"}
        assert (save / f"it3-test/{slug}.mp4").stat().st_size > 200
        obj = trimesh.load(save / f"it3-export/{slug}/model.obj", force="mesh", process=False)
        glb = trimesh.load(save / f"it3-export/{slug}/model.glb", force="mesh", process=False)
        assert obj.is_watertight and glb.is_watertight
        assert obj.volume == pytest.approx(4 / 3 * 3.1416 * 0.5**3, rel=0.3)  # still about the first sphere
        assert glb.volume == pytest.approx(obj.volume, rel=1e-3)
        assert obj.visual.kind == "vertex"
        (part,) = trimesh.load_scene(save / f"it3-export/{slug}/model.glb", process=False).geometry.values()
        assert len(part.visual.vertex_attributes["color"]) == len(obj.vertices)
    for name in ("train/loss_asd", "train/loss_sparsity", "train/loss_eikonal", "train/opacity", "train/skipped_steps"):
        values = column(TRIAL, name)
        assert len(values) == 3 and all(v == v for v in values), name
    state = state_of(TRIAL / "ckpts/last.ckpt")
    assert state["global_step"] == 3
    assert not [k for k in state["state_dict"] if not k.startswith(("geometry.", "renderer.bbox"))]  # no teacher in it
    moved = state["state_dict"]["geometry.heads.sdf.2.weight"]
    assert float(moved.abs().max()) > 0  # the first shape's zeros have learned


@pytest.fixture()
def steady() -> list[str]:
    """Four steps, and time between them in which the run can be killed."""
    return ["trainer.max_steps=4", "trainer.val_check_interval=null"]


def test_killed_after_two_steps_and_resumed_is_the_same(launch_job, steady, tmp_path):
    assert launch_job("--train", *steady, "exp_root_dir=whole") == 0
    command = [sys.executable, str(ROOT / "launch.py"), "--config", CONFIG, "--train", *launch_job.arguments, *steady]
    process = subprocess.Popen(
        [*command, "exp_root_dir=part"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    second = Path("part/asd-3dconv/world_16/ckpts/epoch=0-step=2.ckpt")
    deadline = time.monotonic() + 240
    while not second.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
    assert launch_job("--train", *steady, "exp_root_dir=part", f"resume={second}") == 0
    whole, part = (state_of(Path(f"{folder}/asd-3dconv/world_16/ckpts/last.ckpt")) for folder in ("whole", "part"))
    assert whole["global_step"] == 4
    assert_same(whole, part)


def make_first_prompt_empty(checkpoint: Path, path: Path, arguments: list[str]) -> None:
    """Rewrites a checkpoint so that PROMPTS[0] has nothing inside, and the others are the first sphere.

    The last block gives one feature channel that is a constant times style[0]; style[0] is a linear map
    of the text that is 1 for the first prompt and 0 for the others; the distance grows with that feature.
    """
    content = torch.load(checkpoint, weights_only=True)
    state = {k[len("geometry.") :]: v for k, v in content["state_dict"].items() if k.startswith("geometry.")}
    folder = next(a.split("=", 1)[1] for a in arguments if "pretrained_model" in a)
    processor = threestudio.find("turboprop-multi-prompt-processor")(
        {"pretrained_model_name_or_path": folder, "prompts": PROMPTS}
    )
    text = processor(PROMPTS).global_embeddings  # [3, T]
    selector = torch.linalg.pinv(text)[:, 0]  # [T]
    with torch.no_grad():
        state["generator.mapping.output.weight"].zero_()[0] = selector * TEXT_DIM**0.5
        state["generator.mapping.output.bias"].zero_()
        for block in (0, 1):
            state[f"generator.blocks.{block}.to_features.weight"].zero_()
            state[f"generator.blocks.{block}.to_features.bias"].zero_()
        last = "generator.blocks.1"
        state[f"{last}.conv1.weight"].zero_()
        state[f"{last}.conv1.bias"].fill_(1.0)
        state[f"{last}.to_features.weight"].fill_(1.0)
        state[f"{last}.to_features.affine.bias"].zero_()
        state[f"{last}.to_features.affine.weight"].zero_()[:, 0] = 8.0
        state["heads.sdf.0.weight"].fill_(1.0)
        state["heads.sdf.2.weight"].fill_(1.0)
    torch.save(content, path)


def test_export_from_a_checkpoint_names_an_empty_prompt_and_writes_the_rest(launch_job, tmp_path, caplog):
    assert launch_job("--train", "trainer.max_steps=1", "trainer.val_check_interval=null") == 0
    last = TRIAL / "ckpts/last.ckpt"
    assert launch_job("--export", f"resume={last}", "exp_root_dir=whole") == 0
    export = Path("whole/asd-3dconv/world_16/save/it1-export")
    assert json.loads((export / "prompts.json").read_text()) == dict(zip(PROMPTS, SLUGS))
    for slug in SLUGS:
        for ending in ("obj", "glb"):  # what the run itself wrote
            written, at_the_end = export / slug / f"model.{ending}", TRIAL / f"save/it1-export/{slug}/model.{ending}"
            assert written.read_bytes() == at_the_end.read_bytes()
    make_first_prompt_empty(last, tmp_path / "empty.ckpt", launch_job.arguments)
    caplog.clear()
    given = (f"resume={tmp_path / 'empty.ckpt'}", "exp_root_dir=some", "system.exporter.level=0")
    assert launch_job("--export", *given) == 0
    assert 'no mesh for "a red car": the field is empty' in caplog.text
    assert "exported 2 of 3 prompts" in caplog.text
    export = Path("some/asd-3dconv/world_16/save/it1-export")
    assert json.loads((export / "prompts.json").read_text()) == {
        "a red car": None, "a blue chair": "a_blue_chair", "a red chair": "a_red_chair",
    }  # fmt: skip
    assert not (export / "a_red_car").exists()
    for slug in SLUGS[1:]:
        mesh = trimesh.load(export / slug / "model.glb", force="mesh")
        assert mesh.volume == pytest.approx(4 / 3 * 3.1416 * 0.5**3, rel=0.1)


@pytest.mark.parametrize("method", ["sds", "csd"])
def test_another_method_is_one_override_away(launch_job, method):
    assert launch_job("--train", f"system.guidance_type=turboprop-{method}-guidance", "trainer.max_steps=2",
                      "trainer.val_check_interval=null") == 0  # fmt: skip
    values = column(TRIAL, f"train/loss_{method}")
    assert len(values) == 2 and min(values) > 0
    with open(next(TRIAL.glob("csv_logs/*/metrics.csv")), newline="") as file:
        assert "train/loss_asd" not in next(csv.reader(file))


@pytest.fixture(scope="module")
def broken_guidance() -> str:
    """The registered name of an ASD whose second answer is not a number."""
    name = "test-main-job-nan-guidance"

    @threestudio.register(name)
    class BrokenGuidance(threestudio.find("turboprop-asd-guidance")):
        calls = 0

        def __call__(self, *args: Any, **kwargs: Any) -> dict:
            self.calls += 1
            output = super().__call__(*args, **kwargs)
            if self.calls == 2:
                output["loss_asd"] = output["loss_asd"] * float("nan")
            return output

    return name


def test_a_step_that_is_not_a_number_is_left_out_and_counted(launch_job, broken_guidance, caplog):
    assert launch_job("--train", f"system.guidance_type={broken_guidance}") == 0
    assert column(TRIAL, "train/skipped_steps") == [0, 1, 1]
    assert "step 1: update skipped, the gradient is not finite in geometry." in caplog.text
    state = state_of(TRIAL / "ckpts/last.ckpt")
    assert {float(s["step"]) for s in state["optimizer_states"][0]["state"].values()} == {2.0}
    assert all(torch.isfinite(v).all() for v in state["state_dict"].values())


def test_hostile_prompts_stay_inside_the_trial_folder(launch_job, tmp_path):
    prompts = ["../../../a/red/car", "/" + "red chair " * 30, "a blue chair"]
    before = {p for p in tmp_path.rglob("*") if "cache" not in p.parts}
    assert (
        launch_job("--train", library(tmp_path, prompts), "trainer.max_steps=1", "trainer.val_check_interval=null") == 0
    )
    trial = TRIAL.resolve()
    outside = [
        p for p in tmp_path.rglob("*")
        if p not in before and "cache" not in p.parts and trial not in (p, *p.parents) and p not in trial.parents
    ]  # fmt: skip
    assert outside == []
    exported = sorted(p.name for p in (trial / "save/it1-export").iterdir() if p.is_dir())
    assert len(exported) == 3
    for name in exported:
        assert (trial / f"save/it1-export/{name}/model.obj").is_file()
        assert (trial / f"save/it1-test/{name}.mp4").is_file()


def errors_of(capsys: pytest.CaptureFixture) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]


BAD = [
    (["system.guidance_type=turboprop-asdd-guidance"], ["turboprop-asdd-guidance", "turboprop-asd-guidance"]),
    (["system.geometry_type=turboprop-3dconv"], ["turboprop-3dconv", "turboprop-3dconv-net"]),
    (["data_type=multiprompt-camera-datamodul"], ["data_type", "multiprompt-camera-datamodule"]),
    (["system.geometry.radius=big"], ["radius", "float", "big"]),
    (["system.geometry.chanels=[8,4]"], ["chanels", "channels"]),
    (["system.geometry.channels=wide"], ["channels", "wide"]),
    (["system.renderer.min_weight=2"], ["renderer.min_weight", "2"]),
    (["data.n_views=2"], ["data.n_views", "n_view"]),
    (["data.prompt_library=nowhere"], ["prompt_library", "nowhere"]),
    (["system.prompt_processor.pretrained_model_name_or_path=no/such/folder"], ["no/such/folder"]),
    (["resume=nowhere.ckpt"], ["resume", "nowhere.ckpt"]),
    (["system.guidance.method=asdd"], ["method", "asd"]),
    (["system.exporter.fmt=[objj]"], ["exporter.fmt", "objj"]),
    (["system.judge=no/such/judge"], ["judge", "no/such/judge"]),
    (["tag=../../escape"], ["tag", "escape"]),
]


@pytest.mark.parametrize("arguments, words", BAD, ids=[case[0][0] for case in BAD])
def test_bad_input_is_one_line_before_any_training(launch_job, capsys, arguments, words):
    assert launch_job("--train", *arguments) == 2
    (line,) = errors_of(capsys)
    for word in words:
        assert word in line, line
    assert files_in(Path(".")) == []


@pytest.mark.parametrize(
    "prompts, words",
    [
        ([], "empty"),
        (["a red car", ""], "empty prompt"),
        (["a red car", "   "], "empty prompt"),
        ("a red car", "expected a list of prompts"),
        ([3], "expected a text, got 3"),
    ],
)
def test_bad_libraries(launch_job, capsys, tmp_path, prompts, words):
    assert launch_job("--train", library(tmp_path, prompts)) == 2
    (line,) = errors_of(capsys)
    assert words in line and "library.json" in line
    assert files_in(Path(".")) == []


def test_a_broken_model_folder(launch_job, capsys, tmp_path, tiny_sd_folder):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_sd_folder, broken)
    for weights in (broken / "unet").glob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:100])
    assert launch_job("--train", model(broken)) == 2
    (line,) = errors_of(capsys)
    assert str(broken) in line
    assert files_in(Path(".")) == []


def test_a_text_encoder_of_another_width(launch_job, capsys):
    """Known before training, though only the model's folder tells."""
    assert launch_job("--dry-run", "system.geometry.text_dim=128") == 2
    (line,) = errors_of(capsys)
    assert "geometry.text_dim" in line and "16" in line and "128" in line


@pytest.mark.parametrize("mode", ["--train", "--export"])
def test_a_corrupt_checkpoint(launch_job, capsys, tmp_path, mode):
    (tmp_path / "bad.ckpt").write_bytes(b"PK\x03\x04 torn off")
    assert launch_job(mode, f"resume={tmp_path / 'bad.ckpt'}") == 2
    (line,) = errors_of(capsys)
    assert "corrupt" in line and "bad.ckpt" in line
    assert files_in(Path(".")) == []


def test_a_checkpoint_of_another_generator(launch_job, capsys):
    assert launch_job("--train", "trainer.max_steps=1", "trainer.val_check_interval=null") == 0
    capsys.readouterr()
    assert launch_job("--export", f"resume={TRIAL}/ckpts/last.ckpt", "system.geometry.style_dim=6") == 2
    (line,) = errors_of(capsys)
    assert "size mismatch" in line


def test_dry_run_writes_nothing(launch_job, capsys):
    assert launch_job("--dry-run") == 0
    assert "turboprop-3dconv-net" in capsys.readouterr().out
    assert files_in(Path(".")) == []
