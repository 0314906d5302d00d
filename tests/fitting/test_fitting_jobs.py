"""configs/fit-*.yaml and asd-*.yaml at tiny size through the command line, and the mixin that measures them."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import trimesh
from turboprop.fitting.guidance import PicturesGuidance
from turboprop.system_mixin import SystemMixin

import threestudio
from launch import main
from threestudio.systems.base import BaseSystem
from threestudio.utils.config import parse_structured

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("nerf", "sdf", "dmtet", "gaussians")
SMALL_GEOMETRY = {
    "nerf": ["system.geometry.isosurface_resolution=16", "system.renderer.num_samples_per_ray=24"],
    "sdf": ["system.geometry.isosurface_resolution=16", "system.renderer.num_samples_per_ray=24"],
    "dmtet": ["system.geometry.isosurface_resolution=8"],
    "gaussians": ["system.geometry.init_num_pts=200", "system.geometry.isosurface_resolution=16"],
}
SMALL = [
    "use_timestamp=false",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
    "system.exporter.fmt=obj",
]
SMALL_GRID = [f"system.geometry.pos_encoding_config.{key}" for key in ("n_levels=2", "log2_hashmap_size=8")]


def small(kind: str) -> list[str]:
    return [*SMALL, *SMALL_GEOMETRY[kind], *(SMALL_GRID if kind != "gaussians" else [])]


@pytest.mark.parametrize("kind", KINDS)
def test_fitting_measures_held_out_views_and_leaves_a_mesh(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = ["data.size=12", "data.batch_size=2", "data.n_train_views=4", "data.n_test_views=2", "trainer.max_steps=3"]
    extra = ["system.geometry.isosurface_threshold=0.05"] if kind == "nerf" else []
    config = str(ROOT / "configs" / f"fit-{kind}.yaml")
    assert main(["--config", config, "--train", *small(kind), *data, *extra]) == 0, capsys.readouterr().err
    (save,) = Path("outputs").glob("*/*/save")
    figures = json.loads((save / "it3-evaluation" / "held_out.json").read_text())
    assert figures["views"] == 2 and 0 < figures["psnr"] < 60 and 0 <= figures["iou"] <= 1
    assert 0 < figures["chamfer_share"] < 1
    mesh = trimesh.load(next(save.glob("it3-export/*.obj")), process=False)
    assert len(mesh.faces) > 0 and mesh.is_watertight


@pytest.mark.parametrize("kind", KINDS)
def test_distilling_is_judged_and_leaves_a_mesh(kind, tmp_path, monkeypatch, capsys, tiny_sd_folder, text_cache):
    monkeypatch.chdir(tmp_path)
    given = [
        f"system.prompt_processor.pretrained_model_name_or_path={tiny_sd_folder}", "trainer.max_steps=2",
        f"system.evaluation.judge={ROOT / 'assets/judges/mini-clip'}",
        f"system.evaluation.gallery={ROOT / 'custom/turboprop/world/libraries/world_16.json'}",
        "system.evaluation.views=2", "system.evaluation.size=16", "data.batch_size=2", "data.width=8", "data.height=8",
        "data.eval_width=8", "data.eval_height=8", "data.n_test_views=2", "data.n_val_views=1",
    ]  # fmt: skip
    extra = ["system.geometry.isosurface_threshold=0.05"] if kind == "nerf" else []
    config = str(ROOT / "configs" / f"asd-{kind}.yaml")
    assert main(["--config", config, "--train", *small(kind), *given, *extra]) == 0, capsys.readouterr().err
    (save,) = Path("outputs").glob("*/*/save")
    report = json.loads((save / "it2-evaluation" / "evaluation.json").read_text())
    assert report["views"] == 2 and len(report["gallery"]) == 16
    assert -1 <= report["mean"]["sim"] <= 1
    assert (save / "it2-evaluation" / "views.png").is_file()
    assert len(trimesh.load(next(save.glob("it2-export/*.obj")), process=False).faces) > 0


def test_a_missing_judge_is_known_before_training(tmp_path, monkeypatch, capsys, tiny_sd_folder, text_cache):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no_clip").mkdir()
    given = [
        f"system.prompt_processor.pretrained_model_name_or_path={tiny_sd_folder}",
        "system.evaluation.judge=no_clip",
    ]
    config = str(ROOT / "configs" / "asd-dmtet.yaml")
    assert main(["--config", config, "--train", *small("dmtet"), *given, "data.width=8", "data.height=8"]) == 2
    assert 'no CLIP model in the folder "no_clip"' in capsys.readouterr().err
    assert not list(Path().glob("outputs/*/*/ckpts"))


def test_pictures_guidance_measures_the_difference_and_names_what_is_missing():
    guidance = PicturesGuidance({"delta": 0.1})
    target = torch.rand(2, 4, 4, 3, dtype=torch.float64)
    rgb = (target + 0.01).requires_grad_(True)
    out = guidance(rgb, None, target_rgb=target)
    assert out["psnr"].item() == pytest.approx(40.0, abs=1e-3)
    assert torch.autograd.gradcheck(lambda x: guidance(x, None, target_rgb=target)["loss_rgb"], (rgb,))
    # far below delta the loss is the mean square over 2 delta
    assert out["loss_rgb"].item() == pytest.approx(0.01**2 / 2 / 0.1, rel=0.01)
    with pytest.raises(ValueError, match="turboprop-posed-views-datamodule"):
        guidance(rgb, None)
    with pytest.raises(ValueError, match="differ in shape"):
        guidance(rgb, None, target_rgb=target[:, :2])
    with pytest.raises(ValueError, match="delta: expected > 0"):
        PicturesGuidance({"delta": 0.0})


def test_mixins_bring_their_keys_to_any_system():
    class First(SystemMixin):
        config_group = "first"

    class Second(SystemMixin):
        config_group = "second"

    class Host(BaseSystem):
        @dataclass
        class Config(BaseSystem.Config):
            own: int = 3

    mixed = type("Host.first,second", (First, Second, Host), {})
    cfg = parse_structured(mixed.Config, {"own": 4, "first": {"a": 1}})
    assert cfg.own == 4 and cfg.first == {"a": 1} and cfg.second == {}
    assert "first" not in Host.Config.__dataclass_fields__
    with pytest.raises(ValueError, match="unknown key 'secnd'.*second"):
        parse_structured(mixed.Config, {"secnd": {}})


def test_unknown_evaluation_keys_are_named():
    system = threestudio.find("dreamfusion-system:turboprop-evaluated")
    loss = {f"lambda_{name}": 0.0 for name in ("sds", "orient", "sparsity", "opaque")}
    with pytest.raises(ValueError, match="gallery"):
        system({"evaluation": {"galery": "x"}, "loss": loss})
