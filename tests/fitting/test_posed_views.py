"""Pictures with known cameras: their spread, what they show, and files that are missing or wrong."""

import json
import math

import pytest
import torch
from PIL import Image
from turboprop.evaluation.held_out import held_out_scores, psnr
from turboprop.fitting.data import PosedViewsDataModule, batch_of
from turboprop.fitting.posed_views import folder_views, spiral_c2w, world_views
from turboprop.world.cameras import pixel_rays
from turboprop.world.captions import parse_caption
from turboprop.world.render import render

from threestudio.utils.errors import UserError
from threestudio.utils.picture_files import LARGEST_SIDE

CAPTION = "a yellow car with black wheels"
FOVY = math.radians(40.0)


def test_cameras_of_a_spiral_look_at_the_centre_from_all_around():
    c2w = spiral_c2w(40, (-30.0, 80.0), 2.7)
    position, backward = c2w[:, :3, 3], c2w[:, :3, 2]
    assert torch.allclose(position, 2.7 * backward, atol=1e-5)
    elevation = torch.rad2deg(torch.asin(position[:, 2] / 2.7))
    assert elevation.min() > -30.0 and elevation.max() < 80.0
    azimuth = torch.rad2deg(torch.atan2(position[:, 1], position[:, 0])) % 360
    sectors = (azimuth // 45).long().bincount(minlength=8)
    assert sectors.min() >= 3  # of 40 cameras in 8 sectors
    distances = torch.cdist(position, position) + 10 * torch.eye(40)
    assert distances.min() > 0.3  # no two from nearly the same place


def test_world_views_are_the_worlds_own_pictures():
    spec = parse_caption(CAPTION)
    c2w = spiral_c2w(3, (0.0, 40.0), 2.7)
    views = world_views(spec, c2w, FOVY, 16)
    background = torch.rand(3, 3)
    fovy = torch.full((3,), FOVY)
    rgb, coverage = render(spec.shape, spec.main, spec.accent, c2w, fovy, 16, background, supersample=4)
    assert torch.allclose(views.on(background), rgb.permute(0, 2, 3, 1), atol=1e-6)
    assert torch.equal(views.coverage[..., 0], coverage)


def write_scene(folder, views, name="transforms.json"):
    frames = []
    for index in range(len(views)):
        straight = views.rgb[index] / views.coverage[index].clamp_min(1e-6)
        rgba = torch.cat([straight, views.coverage[index]], -1).clamp(0, 1).mul(255).round().byte()
        Image.fromarray(rgba.numpy()).save(folder / f"{index}.png")
        frames.append({"file_path": f"./{index}", "transform_matrix": views.c2w[index].tolist()})
    (folder / name).write_text(json.dumps({"camera_angle_x": FOVY, "frames": frames}))
    return folder / name


def test_a_folder_of_pictures_is_read_back(tmp_path):
    views = world_views(parse_caption(CAPTION), spiral_c2w(2, (0.0, 40.0), 2.7), FOVY, 16)
    read = folder_views(write_scene(tmp_path, views), 16)
    assert torch.allclose(read.c2w, views.c2w, atol=1e-6) and torch.allclose(read.fovy, views.fovy)
    assert torch.allclose(read.rgb, views.rgb, atol=1 / 255) and torch.allclose(
        read.coverage, views.coverage, atol=1 / 255
    )
    smaller = folder_views(tmp_path / "transforms.json", 8)
    assert smaller.rgb.shape == (2, 8, 8, 3)
    assert torch.allclose(smaller.coverage.mean(), views.coverage.mean(), atol=0.01)


def test_what_is_wrong_with_a_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="no camera file at .*nowhere"):
        folder_views(tmp_path / "nowhere.json", 8)
    views = world_views(parse_caption(CAPTION), spiral_c2w(2, (0.0, 40.0), 2.7), FOVY, 8)
    file = write_scene(tmp_path, views)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    with pytest.raises(UserError, match="1.png: not a whole picture"):
        folder_views(file, 8)
    (tmp_path / "1.png").unlink()
    with pytest.raises(UserError, match="transforms.json: frame 1: no picture at .*1.png"):
        folder_views(file, 8)


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "expected caption, or train_file and test_file"),
        ({"caption": CAPTION, "train_file": "x.json"}, "expected caption, or train_file and test_file"),
        ({"train_file": "x.json"}, "expected both"),
        ({"caption": CAPTION, "size": 0}, "data.size: expected at least 1, got 0"),
        ({"caption": CAPTION, "elevation_range": [80, 20]}, "data.elevation_range"),
        ({"caption": CAPTION, "elevation_range": [1, 2, 3]}, "data.elevation_range"),
        ({"caption": CAPTION, "eval_background": [0.5, 0.5]}, "data.eval_background"),
        ({"caption": CAPTION, "fovy_deg": 200}, "data.fovy_deg"),
        ({"caption": CAPTION, "camera_distance": 0}, "data.camera_distance"),
        ({"caption": "a rde chair with blue legs"}, 'nearest: "red"'),
        ({"train_file": "nowhere.json", "test_file": "nowhere.json"}, "no camera file at nowhere.json"),
    ],
)
def test_impossible_data_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        PosedViewsDataModule(given)


def test_batches_show_the_object_on_the_background_that_they_name():
    module = PosedViewsDataModule(
        {"caption": CAPTION, "size": 8, "batch_size": 2, "n_train_views": 4, "n_test_views": 2}
    )
    module.setup()
    torch.manual_seed(0)
    batch = next(iter(module.train_dataloader()))
    empty = batch["target_coverage"][..., 0] == 0
    assert bool(empty.any())
    for view in range(2):
        shown = batch["target_rgb"][view][empty[view]]
        assert torch.allclose(shown, batch["bg_color"][view].expand_as(shown), atol=1e-6)
    assert not torch.equal(batch["bg_color"][0], batch["bg_color"][1])
    held_out = list(module.test_dataloader())
    assert len(held_out) == 2 and torch.equal(held_out[0]["bg_color"], torch.full((1, 3), 0.55))


def test_rays_and_matrices_of_a_batch_agree():
    views = world_views(parse_caption(CAPTION), spiral_c2w(2, (0.0, 40.0), 2.7), FOVY, 8)
    batch = batch_of(views, torch.zeros(2, 3))
    origins, directions = pixel_rays(views.c2w, views.fovy, 8, 8)
    assert torch.allclose(batch["rays_o"], origins) and torch.allclose(batch["rays_d"], directions, atol=1e-6)
    points = origins + 2.5 * directions
    clip = torch.einsum("bij,bhwj->bhwi", batch["mvp_mtx"], torch.cat([points, torch.ones(2, 8, 8, 1)], -1))
    screen = (clip[..., :2] / clip[..., 3:] + 1) * 4  # y down: rows
    columns = (torch.arange(8) + 0.5).expand(2, 8, 8)
    assert torch.allclose(screen[..., 0], columns, atol=1e-4)
    assert torch.allclose(screen[..., 1], columns.transpose(1, 2), atol=1e-4)
    assert torch.allclose(batch["camera_distances"], torch.full((2,), 2.7))


def test_figures_of_held_out_views():
    target = torch.full((1, 4, 4, 3), 0.5)
    coverage = torch.zeros(1, 4, 4, 1)
    coverage[:, :2] = 1
    assert psnr(target + 0.1, target) == pytest.approx(20.0, abs=1e-4)
    half_wrong = target.clone()
    half_wrong[:, :2] += 0.1  # on the object alone
    scores = held_out_scores(half_wrong, coverage, target, coverage)
    assert scores.psnr_object == pytest.approx(20.0, abs=1e-4)
    assert scores.psnr == pytest.approx(20.0 + 10 * math.log10(2), abs=1e-4)
    assert scores.iou == 1.0 and scores.views == 1


def test_a_very_large_picture_is_shrunk_and_its_camera_stays(tmp_path):
    """The file's focal length and principal point are in pixels of the file, not of the smaller picture."""
    side = 2 * LARGEST_SIDE
    picture = Image.new("L", (side, side), 0)
    picture.paste(255, (side // 2, 0, side, side // 2))  # white above on the right
    picture.save(tmp_path / "0.png", compress_level=1)
    camera = {"fl_x": side, "fl_y": side, "cx": side / 2, "cy": side / 2, "w": side, "h": side}
    frame = {"file_path": "0.png", "transform_matrix": torch.eye(4).tolist()}
    (tmp_path / "transforms.json").write_text(json.dumps({**camera, "frames": [frame]}))
    views = folder_views(tmp_path / "transforms.json", 8)
    expected = torch.zeros(8, 8)
    expected[:4, 4:] = 1.0
    away = torch.ones(8, 8, dtype=torch.bool)  # from the border between white and black, where pixels are averaged
    away[3:5, :] = away[:, 3:5] = False
    assert torch.allclose(views.rgb[0, ..., 0][away], expected[away], atol=1e-6)
    assert views.fovy.item() == pytest.approx(2 * math.atan(0.5), abs=1e-6)
