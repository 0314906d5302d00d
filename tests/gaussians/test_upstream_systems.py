"""threestudio-3dgs's systems, background and losses under its names."""

import csv
from pathlib import Path

import pytest
import torch
from turboprop.gaussians.losses import UPSTREAM_MULTI_VIEW_LOSSES, learned_normals_loss

import threestudio
from launch import main

ROOT = Path(__file__).resolve().parents[2]
SIZES = [
    "data.height=8", "data.width=8", "system.geometry.init_num_pts=40", "trainer.max_steps=2",
    "trainer.enable_progress_bar=false", "use_timestamp=false", "tag=trial", "system.exporter.save_video=false",
]  # fmt: skip


def logged(folder: Path) -> dict[str, list[float]]:
    (file,) = folder.rglob("metrics.csv")
    rows = list(csv.DictReader(file.open()))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


def test_the_background_gives_way_to_black_or_white_by_image():
    torch.manual_seed(0)
    background = threestudio.find("gaussian-mvdream-neural-environment-map-background")(
        {"random_aug": True, "random_aug_prob": 0.8, "share_aug_bg": True}
    )
    directions = torch.nn.functional.normalize(torch.randn(1000, 2, 2, 3), dim=-1)
    color = background(dirs=directions)
    flat = color.reshape(1000, -1)
    black, white = ((flat == value).all(dim=1) for value in (0.0, 1.0))
    shares = [float(x.float().mean()) for x in (black, white)]
    assert shares == pytest.approx([0.4, 0.4], abs=0.05)
    learned = ~(black | white)
    assert torch.equal(color[learned], background.eval()(dirs=directions)[learned])
    (gradient,) = torch.autograd.grad(color[~learned].sum(), background.network.layers[0].weight, allow_unused=True)
    assert gradient is not None and gradient.abs().sum() == 0


def test_losses_of_the_multi_view_system():
    ramp = torch.arange(4.0).reshape(1, 1, 4, 1).expand(1, 4, 4, 1)
    depth_variation = UPSTREAM_MULTI_VIEW_LOSSES["depth_tv_loss"]
    assert depth_variation({"depth": ramp}) == 0  # threestudio-3dgs's plain renderers give no depth
    alone = depth_variation({"comp_depth": ramp, "comp_normal": torch.rand(1, 4, 4, 3)})
    assert alone == depth_variation({"comp_depth": ramp, "comp_normal": torch.zeros(1, 4, 4, 3)}) > 0
    learned, of_depth = torch.full((1, 2, 2, 3), 0.5, requires_grad=True), torch.full((1, 2, 2, 3), 0.7)
    loss = learned_normals_loss({"comp_pred_normal": learned, "comp_normal": of_depth.requires_grad_()})
    assert loss.item() == pytest.approx(0.04)
    loss.backward()
    assert of_depth.grad is None and torch.allclose(learned.grad, torch.full_like(learned, 2 * -0.2 / 12))


def test_mvdreams_config_teaches_four_views_at_once(tiny_sd_folder, tiny_mv_folder, text_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = [
        f"system.prompt_processor.pretrained_model_name_or_path={tiny_sd_folder}", "system.prompt_processor.prompt=a",
        f"system.guidance.ckpt_path={tiny_mv_folder}", "data.eval_height=8", "data.eval_width=8", "data.n_test_views=2",
        "system.geometry.pred_normal=true", "data.width=[8,8]", "data.height=[8,8]", f"exp_root_dir={tmp_path}",
    ]  # fmt: skip
    assert main(["--config", "configs/gaussian_splatting_mvdream.yaml", "--train", *SIZES, *given]) == 0
    figures = logged(tmp_path)
    names = ("sds", "position", "opacity", "scales", "sparsity", "depth_tv_loss", "pred_normal")
    assert all(len(figures[f"train/loss_{name}"]) == 2 for name in names)
    checkpoint = torch.load(tmp_path / "gs-sds-mvdream/trial/ckpts/last.ckpt", weights_only=True)
    (optimizer,) = checkpoint["optimizer_states"]
    moments = {g["name"]: optimizer["state"][i]["exp_avg"] for i, g in enumerate(optimizer["param_groups"][:6])}
    assert moments["geometry.normals"].abs().sum() > 0


def test_a_picture_becomes_gaussians(tiny_zero123_folder, ball_picture, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    cameras = (
        "height=8",
        "width=8",
        "batch_size=2",
        "eval_height=8",
        "eval_width=8",
        "n_val_views=1",
        "n_test_views=2",
    )
    given = [
        f"data.image_path={ball_picture}", *(f"data.random_camera.{value}" for value in cameras),
        f"system.guidance.pretrained_model_name_or_path={tiny_zero123_folder}", f"exp_root_dir={tmp_path}",
    ]  # fmt: skip
    assert main(["--config", "configs/gaussian_splatting_zero123.yaml", "--train", *SIZES, *given]) == 0
    figures = logged(tmp_path)
    assert all(len(figures[f"train/loss_{name}"]) == 2 for name in ("ref_rgb", "ref_mask", "zero123_sds"))
    checkpoint = torch.load(tmp_path / "gs-zero123-sai/trial/ckpts/last.ckpt", weights_only=True)
    (optimizer,) = checkpoint["optimizer_states"]
    rates = {group["name"]: group["lr"] for group in optimizer["param_groups"]}
    assert rates["geometry.sh_dc"] == 0.01 and rates["geometry.log_scales"] == 0.005
    assert checkpoint["state_dict"]["geometry.view_count"].max() == 2 * (1 + 2)  # steps by views, of both parts
