"""From a picture to a mesh by the command line, at tiny size; what is wrong with a picture is said before training."""

import json
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
import trimesh
from omegaconf import OmegaConf
from PIL import Image
from turboprop.novelview import automatic_caption, place_estimate

import threestudio
from launch import main
from tests.picard.processes import launch_in_processes
from tests.tiny_pictures import ball_pixels, save_posed
from threestudio.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {
    "nerf": "zero123-dino",
    "gaussians": "zero123-dino-gaussians",
    "dmtet": "zero123-dino-dmtet",
    "nerf-caption": "magic123-mini",
    "gaussians-caption": "magic123-mini-gaussians",
    "dmtet-caption": "magic123-mini-dmtet",
}
SMALL = {
    "nerf": [
        "system.geometry.isosurface_resolution=16",
        "system.geometry.isosurface_threshold=0.05",
        "system.renderer.num_samples_per_ray=24",
    ],
    "gaussians": ["system.geometry.init_num_pts=200", "system.geometry.isosurface_resolution=16"],
    "dmtet": ["system.geometry.isosurface_resolution=8"],
}
CAPTION = [
    f"system.prompt_processor.pretrained_model_name_or_path={ROOT / 'assets/teachers/mini-mv'}",
    "system.prompt_processor.prompt='a yellow car with black wheels'",
    "data.default_elevation_deg=15",
    "data.default_azimuth_deg=0",
]
AUTO = ["system.prompt_processor.prompt=auto", "data.default_elevation_deg=auto", "data.default_azimuth_deg=auto"]
SMALL |= {f"{kind}-caption": [*given, *CAPTION] for kind, given in SMALL.items()}
LOSSES = {  # by whether there is a caption
    True: ("loss_rgb", "loss_mask", "loss_asd", "loss_3d_sds", "grad_norm", "grad_norm_3d"),
    False: ("loss_ref_rgb", "loss_ref_mask", "loss_zero123_sds", "grad_norm"),
}
JUDGED = [
    f"system.evaluation.judge={ROOT / 'assets/judges/mini-clip'}",
    f"system.evaluation.gallery={ROOT / 'custom/turboprop/world/libraries/world_16.json'}",
    "system.evaluation.views=2",
    "system.evaluation.size=16",
]
GRID = [f"system.geometry.pos_encoding_config.{key}" for key in ("n_levels=2", "log2_hashmap_size=8")]


@pytest.fixture()
def launch(tmp_path, monkeypatch, tiny_zero123_folder, ball_picture, capsys):
    """Runs a dino config at tiny size; gives the exit code and the trial's folder."""
    monkeypatch.chdir(tmp_path)

    def run(kind="nerf", *more, mode="--train", out="outputs", processes=1, judged=True):
        cameras = [
            f"data.random_camera.{key}"
            for key in (
                "height=8",
                "width=8",
                "batch_size=1",
                "eval_height=8",
                "eval_width=8",
                "n_test_views=2",
                "n_val_views=1",
            )
        ]
        part = "guidance_3d" if kind.endswith("-caption") else "guidance"
        given = [
            f"data.image_path={ball_picture}",
            f"system.{part}.pretrained_model_name_or_path={tiny_zero123_folder}",
            "data.height=12",
            "data.width=12",
            "trainer.max_steps=2",
            "trainer.enable_progress_bar=false",
            "trainer.log_every_n_steps=1",
            "use_timestamp=false",
            "tag=t",
            f"exp_root_dir={out}",
            *(JUDGED if judged else []),
            *cameras,
            *SMALL[kind],
            *(GRID if not kind.startswith("gaussians") else []),
        ]
        arguments = ["--config", str(ROOT / "configs" / f"{CONFIGS[kind]}.yaml"), mode, *given, *more]
        code = main(arguments) if processes == 1 else launch_in_processes(arguments, processes)
        return code, tmp_path / out / CONFIGS[kind] / "t"

    return run


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_picture_becomes_a_glb_with_the_judges_figures(kind, launch, capsys, monkeypatch):
    monkeypatch.setattr(automatic_caption, "PROPOSED", 1)
    monkeypatch.setattr(place_estimate, "ELEVATIONS", (0.0,))
    caption = "system.evaluation.caption='a yellow car with black wheels'"
    captioned = kind.endswith("-caption")
    code, trial = launch(kind, caption, *(AUTO if captioned else []))
    assert code == 0, capsys.readouterr().err
    assert all((trial / "save" / f"{name}.json").is_file() == captioned for name in ("caption", "place"))
    mesh = trimesh.load(trial / "save/it2-export/model.glb", force="mesh")
    assert len(mesh.faces) > 0
    figures = json.loads((trial / "save/it2-evaluation/input.json").read_text())
    assert figures["views"] == 1 and 0 < figures["psnr"] < 60 and 0 <= figures["iou"] <= 1
    report = json.loads((trial / "save/it2-evaluation/evaluation.json").read_text())
    assert {"iou", "front_back", "chamfer", "color_error"} & set(report["mean"])
    assert (trial / "save/all_training_images.png").is_file() != captioned
    assert (trial / "save/it2-test.mp4").stat().st_size > 0
    logged = (trial / "csv_logs/version_0/metrics.csv").read_text().splitlines()[0]
    for name in LOSSES[captioned]:
        assert f"train/{name}" in logged


def test_two_processes_leave_the_pictures_of_both(launch):
    """Each has half of the frames; one of them makes the video, and removes the frames of the validation."""
    more = ["trainer.val_check_interval=1", "trainer.check_val_every_n_epoch=null", "data.random_camera.n_val_views=4"]
    caption = "system.evaluation.caption='a yellow car with black wheels'"
    _, trial = launch("nerf", caption, *more, "data.random_camera.n_test_views=4", processes=2)
    save = trial / "save"
    assert sorted(path.name for path in (save / "it2-test").iterdir()) == [f"{index}.png" for index in range(4)]
    for name, frames in (("it1-val", 4), ("it2-val", 4), ("it2-test", 4)):
        assert sum(1 for _ in imageio.get_reader(save / f"{name}.mp4")) == frames
    assert not list(save.glob("*-val")) and not list(save.rglob(".*"))
    assert json.loads((save / "it2-evaluation/evaluation.json").read_text())["mean"]
    assert (save / "it2-export/model.glb").is_file()


def test_without_a_caption_the_input_view_alone_is_measured(launch):
    code, trial = launch("nerf", "system.guidance.method=asd")
    assert code == 0
    assert {p.name for p in (trial / "save/it2-evaluation").iterdir()} == {"input.json"}
    assert "train/loss_zero123_asd" in (trial / "csv_logs/version_0/metrics.csv").read_text()


def state(trial: Path) -> dict:
    checkpoint = torch.load(trial / "ckpts/last.ckpt", weights_only=True)
    return {**checkpoint["state_dict"], "step": torch.tensor(checkpoint["global_step"])}


NO_EVALUATION = ["system.evaluation.judge=''", "system.evaluation.export=false", "data.random_camera.n_test_views=1"]


def test_a_resumed_run_ends_with_the_same_weights(launch, kind="nerf"):
    more = ["trainer.max_steps=4", "checkpoint.every_n_train_steps=2", "data.rays_noise_scale=0.01", *NO_EVALUATION]
    code, whole = launch(kind, *more, out="whole")
    assert code == 0
    assert launch(kind, *more, "trainer.max_steps=2", out="part")[0] == 0
    last = "resume=part/" + CONFIGS[kind] + "/t/ckpts/last.ckpt"
    code, part = launch(kind, *more, last, out="part")
    assert code == 0
    first, second = state(whole), state(part)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("kind", CONFIGS)
def test_in_picard_windows_at_threshold_zero_it_is_the_run_step_by_step(kind, launch):
    system_type = OmegaConf.load(ROOT / "configs" / f"{CONFIGS[kind]}.yaml").system_type.replace(":", ":picard,")
    code, plain = launch(kind, "trainer.max_steps=3", *NO_EVALUATION, out="plain")
    assert code == 0
    window = [
        f"system_type={system_type}",
        "system.picard.window=2",
        "system.picard.threshold=0",
        "trainer.max_steps=3",
        *NO_EVALUATION,
    ]
    code, picard = launch(kind, *window, out="picard")
    assert code == 0
    first, second = state(plain), state(picard)
    for key in first:
        assert torch.equal(first[key], second[key]), key


def test_several_pictures_with_their_cameras(launch, tmp_path):
    save_posed(tmp_path, [ball_pixels()] * 3, [10.0] * 3, [0.0, 120.0, 240.0])
    code, trial = launch("nerf", f"data.image_path={tmp_path}", "data.batch_size=2")
    assert code == 0
    assert json.loads((trial / "save/it2-evaluation/input.json").read_text())["views"] == 3


def test_auto_estimates_the_elevation_and_the_run_keeps_it(launch):
    code, trial = launch("nerf", "data.default_elevation_deg=auto", *NO_EVALUATION)
    assert code == 0
    kept = OmegaConf.load(trial / "configs/parsed.yaml")
    estimate = json.loads((trial / "save/elevation.json").read_text())["elevation_deg"]
    assert kept.data.default_elevation_deg == kept.system.guidance.cond_elevation_deg == estimate
    assert (trial / "save/elevation.png").is_file()


def test_auto_with_several_pictures_is_the_first_ones_place(launch, tmp_path, monkeypatch):
    """Also the caption is read from it."""
    monkeypatch.setattr(automatic_caption, "PROPOSED", 1)
    save_posed(tmp_path, [ball_pixels()] * 2, [20.0, -5.0], [30.0, 120.0])
    code, trial = launch("nerf-caption", f"data.image_path={tmp_path}", *AUTO)
    assert code == 0
    kept = OmegaConf.load(trial / "configs/parsed.yaml")
    assert kept.data.default_elevation_deg == pytest.approx(20.0) == kept.system.guidance_3d.cond_elevation_deg
    assert kept.data.default_azimuth_deg == pytest.approx(30.0) == kept.system.guidance_3d.cond_azimuth_deg
    captions = json.loads((trial / "save/caption.json").read_text())["captions"]
    assert captions == [kept.system.prompt_processor.prompt]


# ---------------------------------------------------------------------------------- bad input


def save(change):
    def write(path):
        Image.fromarray(change(ball_pixels())).save(path)

    return write


def truncated(path):
    save(lambda pixels: pixels)(path)
    path.write_bytes(path.read_bytes()[:80])


BAD_PICTURES = {
    "no alpha": (save(lambda p: p[..., :3]), "has no transparent background"),
    "empty mask": (save(lambda p: p * np.uint8([1, 1, 1, 0])), "is empty: no pixel has an alpha above 0.5"),
    "one pixel": (save(lambda p: p[20:21, 20:21]), "has 1 x 1 pixels"),
    "truncated": (truncated, "is not a whole picture"),
    "missing": (lambda path: None, "no picture at"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_bad_picture_is_one_line_before_training(name, launch, tmp_path, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "rembg", None)
    write, message = BAD_PICTURES[name]
    write(tmp_path / "bad.png")
    code, trial = launch("nerf", f"data.image_path={tmp_path / 'bad.png'}")
    assert code == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "data.image_path" in error and message in error
    assert not trial.exists()


def test_a_missing_model_is_one_line(launch, capsys):
    code, trial = launch("nerf", "system.guidance.pretrained_model_name_or_path=nowhere/model")
    assert code == 2 and "nowhere/model" in capsys.readouterr().err and not trial.exists()


@pytest.mark.parametrize("kind, part", [("nerf", "guidance"), ("nerf-caption", "guidance_3d")])
def test_a_guidances_picture_is_named_by_its_part(kind, part, launch, capsys):
    assert launch(kind, f"system.{part}.cond_image_path=gone.png")[0] == 2
    assert f"error: system.{part}: cond_image_path: no picture at gone.png" in capsys.readouterr().err


# ----------------------------------------------------------------------------------- the systems

LOSS = {f"lambda_{name}": 1.0 for name in ("sds", "rgb", "mask")}


@pytest.mark.parametrize(
    "name, config, message",
    [
        (
            "zero123-system",
            {"loss": {"lambda_sds": 1.0, "lambda_rgb": 1.0}},
            "system.loss.lambda_mask: a value is required",
        ),
        ("zero123-system", {"freq": {"n_reff": 2}}, "system.freq.n_reff: unknown key"),
        (
            "zero123-system",
            {"freq": {"ref_or_zero123": "both"}},
            "system.freq.ref_or_zero123: expected one of accumulate, alternate",
        ),
        ("zero123-system", {"freq": {"ref_or_zero123": "alternate"}}, "system.freq.n_ref: alternate needs a number"),
        ("zero123-system", {"ambient_ratio_min": 1.5}, "system.ambient_ratio_min: expected between 0 and 1, got 1.5"),
        (
            "zero123-system",
            {"loss": {**LOSS, "lambda_rgbb": 1.0}},
            "system.loss.lambda_rgbb: no loss has this weight; nearest: lambda_rgb",
        ),
        (
            "image-condition-dreamfusion-system",
            {"freq": {"ref_or_zero123": "alternate"}},
            "system.freq.ref_or_zero123: unknown key",
        ),
    ],
)
def test_bad_systems_are_named(name, config, message):
    with pytest.raises(UserError, match=message):
        threestudio.find(name)({"loss": LOSS, "guidance_type": "zero123-guidance", **config})


def test_alternate_looks_at_one_part_a_step(launch):
    """A figure that a step does not have keeps its last value in the log."""
    alternate = [
        "system.freq.ref_or_zero123=alternate",
        "system.freq.n_ref=2",
        "system.freq.ref_only_steps=1",
        "trainer.max_steps=4",
    ]
    code, trial = launch("nerf", *alternate, *NO_EVALUATION)
    assert code == 0
    header, *rows = [line.split(",") for line in (trial / "csv_logs/version_0/metrics.csv").read_text().splitlines()]
    rows = [row for row in rows if row[header.index("train/loss_ref_rgb")]]
    changed = {}
    for name in ("loss_ref_rgb", "loss_zero123_sds"):
        values = ["", *(row[header.index(f"train/{name}")] for row in rows)]
        changed[name] = [after != before for before, after in zip(values, values[1:])]
    assert changed == {"loss_ref_rgb": [True, False, True, False], "loss_zero123_sds": [False, True, False, True]}


def test_the_simple_system_asks_its_guidance_alone(launch, tmp_path, monkeypatch, capsys):
    config = OmegaConf.load(ROOT / "configs" / "zero123-dino.yaml")
    config.system_type = "zero123-simple-system"
    del config.system.evaluation, config.system.freq
    config.system.geometry.normal_type = "analytic"
    config.system.material.requires_normal = config.system.renderer.return_comp_normal = True
    weights = ("sds", "orient", "normal_smoothness_2d", "sparsity", "opaque")
    config.system.loss = {f"lambda_{name}": 1.0 for name in weights}
    OmegaConf.save(config, tmp_path / "simple.yaml")
    monkeypatch.setitem(CONFIGS, "nerf", str(tmp_path / "simple"))
    code, _ = launch("nerf", judged=False)
    assert code == 0, capsys.readouterr().err
    header = (tmp_path / "outputs/zero123-dino/t/csv_logs/version_0/metrics.csv").read_text().splitlines()[0].split(",")
    losses = {name.removeprefix("train/") for name in header if name.startswith("train/loss_")}
    assert losses >= {f"loss_{name}" for name in weights} and not any("rgb" in name for name in losses)


def test_a_loss_that_the_render_cannot_have_says_what_to_set(launch, capsys):
    code, _ = launch("nerf", "system.loss.lambda_normal_smooth=1.0")
    assert code == 2
    message = "system.loss.lambda_normal_smooth: the render has no comp_normal; set renderer.return_comp_normal=true"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "part", "given"),
    [
        ("nerf", "guidance", ["system.guidance_type=zero123-dino-vsd-guidance"]),
        (
            "nerf-caption",
            "guidance_3d",
            [
                "system.guidance_3d_type=zero123-unified-guidance",
                "system.guidance_3d.guidance_type=vsd",
                "system.loss.lambda_3d_train_phi=1.0",
            ],
        ),
    ],
)
def test_variational_guidances_train_beside_the_scene(kind, part, given, launch, capsys):
    """Their weights are in the checkpoint, and in an optimizer's group of their own that no config named."""
    code, trial = launch(kind, *given)
    assert code == 0, capsys.readouterr().err
    checkpoint = torch.load(trial / "ckpts/last.ckpt", weights_only=True)
    # they start at zero; queries and keys of attention to one token have no influence, and stay there
    values = {k: v for k, v in checkpoint["state_dict"].items() if k.startswith(f"{part}.") and k.endswith("v/lora_B")}
    assert values and all(value.abs().max() > 0 for value in values.values())
    (optimizer,) = checkpoint["optimizer_states"]
    assert {group["name"]: group for group in optimizer["param_groups"]}[part]["eps"] == 1e-8


def test_the_captions_teacher_may_see_another_background(launch, monkeypatch, capsys):
    """Black in white's place: what it sees is darker by 1 - opacity, in all channels alike."""
    seen = {}
    system = threestudio.find("magic123-system")
    novel_view = threestudio.find("zero123-dino-guidance")
    guide, guide_3d = system.guide, novel_view.__call__
    monkeypatch.setattr(
        system, "guide", lambda self, rgb, *a, **k: (seen.update(text=rgb), guide(self, rgb, *a, **k))[1]
    )
    monkeypatch.setattr(
        novel_view, "__call__", lambda self, rgb, **k: (seen.update(picture=rgb), guide_3d(self, rgb, **k))[1]
    )
    black = [
        "system.guidance_background_type=turboprop-plain-background",
        "system.guidance_background={grey_range: [0, 0], tint: 0}",
    ]
    assert launch("nerf-caption", *black)[0] == 0, capsys.readouterr().err
    emptiness = seen["picture"] - seen["text"]
    assert emptiness.min() >= -1e-6 and 0.1 < emptiness.max() <= 1 + 1e-6
    torch.testing.assert_close(emptiness, emptiness[..., :1].expand_as(emptiness), rtol=0, atol=1e-6)
    assert seen["text"].min() >= -1e-6
