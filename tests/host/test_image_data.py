"""single-image-datamodule: the picture's camera, its sizes over the steps, its maps, and random cameras beside it."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

import threestudio
from tests.tiny_pictures import BALL_COLOR, ball_pixels
from threestudio.data.image import ReferenceViewsIterableDataset, SingleImageDataModuleConfig
from threestudio.data.reference_views import ReferenceViews, orbit_camera
from threestudio.utils.config import parse_structured
from threestudio.utils.errors import UserError


def module(ball_picture, **changes):
    config = {
        "image_path": str(ball_picture),
        "height": 20,
        "width": 20,
        "default_elevation_deg": 20.0,
        "default_azimuth_deg": 30.0,
        "default_camera_distance": 2.0,
        "default_fovy_deg": 40.0,
        "rays_noise_scale": 0.0,
        "random_camera": {
            "batch_size": 2,
            "height": 4,
            "width": 4,
            "eval_height": 6,
            "eval_width": 6,
            "n_val_views": 3,
            "n_test_views": 5,
        },
    }
    return threestudio.find("single-image-datamodule")({**config, **changes})


def train_batch(data, step=0):
    data.setup("fit")
    data.train_dataset.do_update_step(0, step)
    return data.train_dataset.collate(None)


def test_the_camera_stands_where_the_config_says(ball_picture):
    batch = train_batch(module(ball_picture))
    e, a = math.radians(20), math.radians(30)
    place = 2 * torch.tensor([[math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)]])
    torch.testing.assert_close(batch["camera_positions"], place)
    torch.testing.assert_close(batch["light_positions"], place)
    assert batch["rays_o"].shape == batch["rays_d"].shape == (1, 20, 20, 3)
    torch.testing.assert_close(batch["rays_d"].norm(dim=-1), torch.ones(1, 20, 20))
    # the middle of the four central rays goes to the origin
    central = batch["rays_d"][0, 9:11, 9:11].mean((0, 1))
    torch.testing.assert_close(central / central.norm(), -place[0] / 2, atol=1e-5, rtol=0)
    # the outermost pixel centre of the middle column stands 40 / 2 degrees, less half a pixel, above the axis
    top = batch["rays_d"][0, 0, 9:11].mean(0)
    angle = math.degrees(math.acos(float((top / top.norm()) @ (-place[0] / 2))))
    assert angle == pytest.approx(math.degrees(math.atan(math.tan(math.radians(20)) * 0.95)), abs=1e-3)
    for name, value in (("elevation", 20.0), ("azimuth", 30.0), ("camera_distances", 2.0), ("fovy", math.radians(40))):
        assert batch[name].tolist() == pytest.approx([value], abs=1e-4)
    assert batch["height"] == batch["width"] == 20 and batch["c2w"].shape == batch["mvp_mtx"].shape == (1, 4, 4)


def test_the_picture_and_its_mask(ball_picture):
    batch = train_batch(module(ball_picture, height=40, width=40))
    expected = torch.from_numpy(ball_pixels()).float() / 255
    assert torch.equal(batch["mask"][0, ..., 0], expected[..., 3] > 0.5) and batch["mask"].dtype == torch.bool
    inside = batch["mask"][0, ..., 0]
    torch.testing.assert_close(batch["rgb"][0][inside], (torch.tensor(BALL_COLOR) / 255).expand(int(inside.sum()), 3))
    assert batch["ref_depth"] is None and batch["ref_normal"] is None


def test_a_picture_of_another_shape_gets_borders(tmp_path):
    Image.fromarray(ball_pixels()[:, 5:35]).save(tmp_path / "narrow.png")  # 30 x 40: the ball is whole
    batch = train_batch(module(tmp_path / "narrow.png", height=40, width=40))
    assert torch.equal(batch["mask"][0, ..., 0], torch.from_numpy(ball_pixels()[..., 3] > 127))


def test_random_cameras_stand_beside_it_or_not(ball_picture):
    torch.manual_seed(0)
    batch = train_batch(module(ball_picture))
    assert batch["random_camera"]["rays_o"].shape == (2, 4, 4, 3)
    assert "random_camera" not in train_batch(module(ball_picture, use_random_camera=False))


def test_sizes_change_at_their_steps(ball_picture):
    cameras = {"height": [4, 6], "width": [4, 6], "batch_size": [2, 1], "resolution_milestones": [5]}
    data = module(ball_picture, height=[8, 12], width=[8, 12], resolution_milestones=[3], random_camera=cameras)
    seen = []
    for step in (0, 2, 3, 5, 0):
        batch = train_batch(data, step)
        seen.append(
            (
                batch["rgb"].shape[1],
                batch["rays_o"].shape[1],
                batch["height"],
                tuple(batch["random_camera"]["rays_o"].shape[:2]),
            )
        )
    assert seen == [(8, 8, 8, (2, 4)), (8, 8, 8, (2, 4)), (12, 12, 12, (2, 4)), (12, 12, 12, (1, 6)), (8, 8, 8, (2, 4))]


def test_depth_and_normals_lie_beside_the_picture(ball_picture):
    batch = train_batch(module(ball_picture, height=40, width=40, requires_depth=True, requires_normal=True))
    columns = torch.arange(40) + 90.0
    inside = batch["mask"][0, ..., 0]
    torch.testing.assert_close(batch["ref_depth"][0, ..., 0][inside] * 255, columns.expand(40, 40)[inside])
    torch.testing.assert_close(
        (1 - 2 * batch["ref_normal"][0])[20, 20], torch.tensor([1.0, 0.0, 0.0]), atol=1e-2, rtol=0
    )


def test_the_rays_noise_is_the_steps_own(ball_picture):
    data = module(ball_picture, rays_noise_scale=1e-2)
    torch.manual_seed(3)
    first = train_batch(data)
    torch.manual_seed(3)
    again = train_batch(data)
    other = train_batch(data)
    assert torch.equal(first["rays_o"], again["rays_o"]) and torch.equal(first["rays_d"], again["rays_d"])
    offset = first["rays_o"] - other["rays_o"]
    assert 1e-4 < offset.abs().max() < 0.1
    assert torch.equal(offset, offset[:, :1, :1].expand_as(offset))


def test_evaluation_needs_no_picture(ball_picture):
    data = module("gone.png")
    data.setup("test")
    loader = data.test_dataloader()
    batches = list(loader)
    assert len(batches) == 5 and batches[0]["rays_o"].shape == (1, 6, 6, 3)
    assert "rgb" not in batches[0]


def test_of_several_pictures_a_step_has_as_many_as_it_asks_for():
    pictures = tuple(torch.full((4, 4, 4), float(index)) for index in range(3))
    c2w = torch.cat([orbit_camera(10.0, 40.0 * index, 2.0) for index in range(3)])
    views = ReferenceViews(pictures, c2w, torch.full((3,), 0.6))
    for batch_size, count in ((1, 1), (2, 2), (5, 3)):
        cfg = parse_structured(
            SingleImageDataModuleConfig, {"height": 4, "width": 4, "batch_size": batch_size, "use_random_camera": False}
        )
        dataset = ReferenceViewsIterableDataset(cfg, views)
        torch.manual_seed(0)
        seen = set()
        for _ in range(20):
            batch = dataset.collate(None)
            assert len(batch["rgb"]) == count
            which = (batch["rgb"][:, 0, 0, 0]).round().tolist()
            assert batch["azimuth"].tolist() == pytest.approx([40.0 * index for index in which], abs=1e-3)
            seen |= set(which)
        assert seen == {0, 1, 2}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_path": ""}, "data.image_path: the path of a picture is required"),
        ({"image_pth": "x"}, "unknown key 'image_pth'.*nearest: image_path"),
        ({"default_fovy_deg": 180.0}, "data.default_fovy_deg: expected between 0 and 180, got 180"),
        ({"default_elevation_deg": 90.0}, "data.default_elevation_deg: expected between -90 and 90, got 90"),
        ({"default_camera_distance": 0.0}, "data.default_camera_distance: expected more than 0, got 0"),
        ({"batch_size": 0}, "data.batch_size: expected at least 1, got 0"),
        ({"rays_noise_scale": -1.0}, "data.rays_noise_scale: expected at least 0, got -1"),
        ({"height": [8, 12]}, "data.resolution_milestones: expected 1 steps for 2 stages"),
        (
            {"height": [8, 12], "width": [8, 12, 16], "resolution_milestones": [1, 2]},
            "data.height: expected 1 or 3 values",
        ),
        ({"random_camera": {"batch_sizes": 2}}, "unknown key 'random_camera.batch_sizes'.*nearest: batch_size"),
        (
            {"random_camera": {"fovy_range": [40, 20]}},
            "data.random_camera.fovy_range: expected two finite numbers, the lower first",
        ),
        (
            {"random_camera": {"camera_distance_range": [1.0, float("inf")]}},
            "data.random_camera.camera_distance_range: expected two finite numbers, the lower first",
        ),
        (
            {"random_camera": {"height": [4, 8]}},
            "data.random_camera.resolution_milestones: expected 1 steps for 2 stages",
        ),
        (
            {"requires_depth": True, "image_path": "{other}"},
            "data.requires_depth: the depth map of X_rgba.png is X_depth.png; got the picture ball.png",
        ),
        ({"requires_normal": True, "image_path": "{alone}"}, "data.requires_normal: no picture at .*alone_normal.png"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_configs_are_named(ball_picture, tmp_path, changes, message):
    for name in ("ball.png", "alone_rgba.png"):
        Image.fromarray(ball_pixels()).save(tmp_path / name)
    places = {"{other}": str(tmp_path / "ball.png"), "{alone}": str(tmp_path / "alone_rgba.png")}
    changes = {key: places.get(value, value) if isinstance(value, str) else value for key, value in changes.items()}
    with pytest.raises(UserError, match=message):
        train_batch(module(ball_picture, **changes))


def test_the_pictures_that_a_run_shows_are_on_white(ball_picture):
    data = module(ball_picture, height=40, width=40)
    data.setup("fit")
    shown = data.train_dataset.get_all_images()
    assert shown.shape == (1, 40, 40, 3)
    assert torch.equal(shown[0, 0, 0], torch.ones(3))
    assert np.allclose(shown[0, 20, 20].numpy() * 255, BALL_COLOR)
