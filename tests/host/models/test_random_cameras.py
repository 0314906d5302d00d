import math

import pytest
import torch
import torch.nn.functional as F

import threestudio
from threestudio.data.cameras import look_at
from threestudio.data.uncond import RandomCameraDataModuleConfig, RandomCameraDataset, RandomCameraIterableDataset
from threestudio.utils.config import parse_structured
from threestudio.utils.errors import UserError


def config(**keys):
    return parse_structured(
        RandomCameraDataModuleConfig, {"height": 8, "width": 12, "eval_height": 6, "eval_width": 8, **keys}
    )


def draw(seed=0, **keys):
    torch.manual_seed(seed)
    return RandomCameraIterableDataset(config(**keys)).collate(None)


def test_batch_has_upstreams_keys_and_shapes():
    b = draw(batch_size=3)
    shapes = {k: tuple(v.shape) for k, v in b.items() if isinstance(v, torch.Tensor)}
    assert shapes == {
        "rays_o": (3, 8, 12, 3), "rays_d": (3, 8, 12, 3), "mvp_mtx": (3, 4, 4), "proj_mtx": (3, 4, 4), "c2w": (3, 4, 4),
        "camera_positions": (3, 3), "light_positions": (3, 3), "elevation": (3,), "azimuth": (3,),
        "camera_distances": (3,), "fovy": (3,),
    }  # fmt: skip
    assert (b["height"], b["width"]) == (8, 12)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
def test_cameras_are_right_for_every_batch_size(batch_size):
    """Three is the size at which a cross product along the wrong axis goes unnoticed."""
    b = draw(batch_size=batch_size, camera_perturb=0, center_perturb=0, up_perturb=0)
    rotation = b["c2w"][:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(batch_size, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(batch_size))
    torch.testing.assert_close(
        F.normalize(b["camera_positions"], dim=-1), rotation[:, :, 2], atol=1e-5, rtol=0
    )  # -z looks at 0
    assert (rotation[:, 2, 1] >= -1e-6).all() and rotation[:, 2, 0].abs().max() < 1e-5  # up is up, right is level
    e, a, d = b["elevation"].deg2rad(), b["azimuth"].deg2rad(), b["camera_distances"]
    expected = d[:, None] * torch.stack([e.cos() * a.cos(), e.cos() * a.sin(), e.sin()], -1)
    torch.testing.assert_close(b["camera_positions"], expected, atol=1e-5, rtol=0)


def test_rays_agree_with_the_projection():
    b = draw(batch_size=3)
    torch.testing.assert_close(b["rays_d"].norm(dim=-1), torch.ones(3, 8, 12))
    points = b["rays_o"] + 1.7 * b["rays_d"]
    clip = torch.einsum("bij,bhwj->bhwi", b["mvp_mtx"], F.pad(points, (0, 1), value=1.0))
    ndc = clip[..., :2] / clip[..., 3:]
    x = (torch.arange(12) + 0.5) / 12 * 2 - 1
    y = (torch.arange(8) + 0.5) / 8 * 2 - 1  # y down: row 0 at -1
    torch.testing.assert_close(ndc[..., 0], x.expand(3, 8, 12), atol=1e-4, rtol=0)
    torch.testing.assert_close(ndc[..., 1], y[:, None].expand(3, 8, 12), atol=1e-4, rtol=0)


def test_rays_without_normalization_have_unit_depth():
    b = draw(rays_d_normalize=False)
    forward = -b["c2w"][:, :3, 2]
    torch.testing.assert_close((b["rays_d"] * forward[:, None, None]).sum(-1), torch.ones(1, 8, 12))


def test_draws_stay_in_their_ranges_and_follow_the_seed():
    b = draw(
        batch_size=2000,
        elevation_range=[-10, 60],
        azimuth_range=[-90, 30],
        camera_distance_range=[1, 2],
        fovy_range=[30, 50],
        height=1,
        width=1,
    )
    for key, low, high in (("elevation", -10, 60), ("azimuth", -90, 30), ("camera_distances", 1, 2)):
        assert low - 1e-4 <= b[key].min() < low + 1 and high - 1 < b[key].max() <= high + 1e-4, key
    assert math.radians(30) <= b["fovy"].min() and b["fovy"].max() <= math.radians(50)
    lights = b["light_positions"].norm(dim=-1)
    assert lights.min() >= 0.8 - 1e-5 and lights.max() <= 1.5 + 1e-5
    assert torch.equal(draw(seed=3)["rays_d"], draw(seed=3)["rays_d"]) and not torch.equal(
        draw(seed=3)["c2w"], draw(seed=4)["c2w"]
    )


def test_elevations_are_uniform_in_angle_or_on_the_sphere():
    kinds = set()
    for seed in range(8):
        elevation = draw(seed=seed, batch_size=4000, elevation_range=[-90, 90], height=1, width=1)["elevation"]
        by_angle = (elevation.abs() < 30).float().mean().item()
        kinds.add({True: "angle", False: "sphere"}[by_angle < 0.42])
        assert by_angle == pytest.approx(1 / 3, abs=0.03) or by_angle == pytest.approx(0.5, abs=0.03)
    assert kinds == {"angle", "sphere"}


def test_azimuths_are_stratified():
    b = draw(batch_size=8, azimuth_range=[0, 360])
    assert (b["azimuth"] // 45).tolist() == list(range(8))
    free = draw(batch_size=64, batch_uniform_azimuth=False, azimuth_range=[0, 360], height=1, width=1)
    assert (free["azimuth"] // (360 / 64)).unique().numel() < 60


def test_magic3d_lights_are_above_the_camera_side():
    b = draw(batch_size=500, light_sample_strategy="magic3d", height=1, width=1)
    cosine = F.cosine_similarity(b["light_positions"], b["camera_positions"], dim=-1)
    assert cosine.min() >= 0.5 - 1e-4 and cosine.max() > 0.99


def test_stages_switch_at_milestones():
    dataset = RandomCameraIterableDataset(
        config(height=[4, 8], width=[6, 10], batch_size=[3, 1], resolution_milestones=[100])
    )
    for step, shape in ((0, (3, 4, 6, 3)), (99, (3, 4, 6, 3)), (100, (1, 8, 10, 3)), (5, (3, 4, 6, 3))):
        dataset.do_update_step(0, step)
        assert dataset.collate(None)["rays_d"].shape == shape


def test_angles_widen_progressively():
    dataset = RandomCameraIterableDataset(
        config(progressive_until=100, elevation_range=[-10, 90], azimuth_range=[-180, 180])
    )
    assert dataset.elevation_range == (15, 15) and dataset.azimuth_range == (0, 0)
    dataset.do_update_step(0, 50)
    assert dataset.elevation_range == (2.5, 52.5) and dataset.azimuth_range == (-90, 90)
    dataset.do_update_step(0, 1000)
    assert dataset.elevation_range == (-10, 90)


def test_evaluation_orbits():
    val, test = RandomCameraDataset(config(n_val_views=4), "val"), RandomCameraDataset(config(n_test_views=3), "test")
    assert val.azimuth.tolist() == [0, 90, 180, 270] and test.azimuth.tolist() == [0, 180, 360]
    view = val[1]
    assert view["rays_o"].shape == (6, 8, 3) and view["index"] == 1
    torch.testing.assert_close(
        view["camera_positions"][:2], torch.tensor([0, 1.5 * math.cos(math.radians(15))]), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(view["light_positions"], view["camera_positions"])


def test_data_module_loaders():
    data = threestudio.find("random-camera-datamodule")(
        {"height": 4, "width": 4, "eval_height": 4, "eval_width": 4, "n_test_views": 3, "batch_size": 2}
    )
    data.setup()
    assert next(iter(data.train_dataloader()))["rays_o"].shape == (2, 4, 4, 3)
    views = list(data.test_dataloader())
    assert len(views) == len(list(data.predict_dataloader())) == 3 and len(list(data.val_dataloader())) == 1
    assert views[2]["rays_d"].shape == (1, 4, 4, 3) and views[2]["index"].tolist() == [2] and views[2]["height"] == 4
    assert views[0]["c2w"].shape == (1, 4, 4) and views[0]["elevation"].shape == (1,)


def test_look_at_from_known_places():
    c2w = look_at(torch.tensor([[2.0, 0, 0]]), torch.zeros(1, 3), torch.tensor([[0.0, 0, 1]]))[0]
    expected = torch.tensor([[0.0, 0, 1, 2], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    torch.testing.assert_close(c2w, expected)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"height": [8, 16]}, "resolution_milestones.*expected 1 steps"),
        ({"height": [8, 16], "width": [1, 2, 3], "resolution_milestones": [1, 2]}, "data.height"),
        ({"batch_size": 0}, "batch_size"),
        ({"height": 64.5}, "height"),
        ({"elevation_range": [90, -10]}, "elevation_range"),
        ({"elevation_range": [-10, 120]}, "data.elevation_range: expected angles between -90 and 90 degrees, got"),
        ({"eval_elevation_deg": -100}, "data.eval_elevation_deg: expected between -90 and 90, got -100"),
        (
            {"height": [8, 16, 32], "resolution_milestones": [200, 100]},
            r"data.resolution_milestones: expected steps that rise, got \[200, 100\]",
        ),
        ({"light_sample_strategy": "magic"}, "light_sample_strategy"),
        ({"n_val_views": 0}, "n_val_views"),
        ({"heigth": 3}, "heigth.*height"),
    ],
)
def test_wrong_configs_are_refused_by_name(keys, message):
    with pytest.raises(UserError, match=message):
        RandomCameraIterableDataset(config(**keys))
        RandomCameraDataset(config(**keys), "val")


@pytest.mark.parametrize(
    "given, message",
    [
        ({"fovy_range": [0, 0]}, "data.fovy_range: expected angles between 0 and 180"),
        ({"fovy_range": [40, 190]}, "data.fovy_range: expected angles between 0 and 180"),
        ({"camera_distance_range": [0, 1]}, "data.camera_distance_range: expected more than 0"),
        ({"eval_fovy_deg": 0}, "data.eval_fovy_deg: expected between 0 and 180"),
        ({"eval_camera_distance": 0}, "data.eval_camera_distance"),
        ({"height": 10**6, "width": 10**6}, "data.height: 1000000 needs .* GB of memory"),
        ({"eval_height": 10**6, "eval_width": 10**6}, "data.eval_height: 1000000 needs .* GB of memory"),
    ],
)
def test_degenerate_cameras_and_pictures_that_no_memory_holds_are_refused(given, message):
    module = threestudio.find("random-camera-datamodule")(given)
    with pytest.raises(UserError, match=message):
        module.setup("fit")
