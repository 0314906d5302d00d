"""threestudio-mvdream's data module, background and system."""

import pytest
import torch

import threestudio


def module(**changes):
    options = {"batch_size": [8, 4], "n_view": 4, "width": [4, 8], "height": [4, 8], "resolution_milestones": [10],
               "camera_distance_range": [0.8, 1.0], "fovy_range": [15, 60], "elevation_range": [0, 30],
               "camera_perturb": 0.0, "center_perturb": 0.0, "up_perturb": 0.0, "n_val_views": 4, "n_test_views": 3,
               "eval_height": 5, "eval_width": 5, "eval_camera_distance": 3.0, "eval_fovy_deg": 40.0}  # fmt: skip
    return threestudio.find("mvdream-random-multiview-camera-datamodule")({**options, **changes})


def train_batch(step: int = 0, seed: int = 0, **changes) -> dict:
    data = module(**changes)
    data.setup("fit")
    data.train_dataset.update_step(0, step)
    torch.manual_seed(seed)
    return data.train_dataset.collate({})


def test_sets_stand_around_the_scene():
    batch = train_batch()
    assert batch["rays_o"].shape == (8, 4, 4, 3)
    assert torch.allclose(batch["azimuth"].reshape(2, 4).diff(dim=1), torch.full((2, 3), 90.0), atol=1e-3)
    for name in ("elevation", "camera_distances", "fovy"):
        values = batch[name].reshape(2, 4)
        assert torch.equal(values, values[:, :1].expand(2, 4)) and values[0, 0] != values[1, 0]
    apparent = batch["camera_distances"] * torch.tan(0.5 * batch["fovy"])
    assert float(apparent.min()) >= 0.8 - 1e-5 and float(apparent.max()) <= 1 + 1e-5


@pytest.mark.parametrize("strategy", ["dreamfusion", "magic3d"])
def test_a_set_is_perturbed_and_lit_together(strategy):
    """Else the views would not be of one camera that went round, nor under one light: threestudio-mvdream's draws."""
    batch = train_batch(camera_perturb=0.1, center_perturb=0.2, up_perturb=0.02, light_sample_strategy=strategy)
    moved, still = (b["camera_positions"].reshape(2, 4, 3) for b in (batch, train_batch()))
    offset = moved - still
    assert torch.allclose(offset, offset[:, :1].expand(2, 4, 3), atol=1e-5) and offset.abs().max() > 0.01
    assert (offset[0, 0] - offset[1, 0]).abs().max() > 0.01
    distances = batch["light_positions"].norm(dim=-1).reshape(2, 4)
    assert torch.allclose(distances, distances[:, :1].expand(2, 4), atol=1e-5)
    assert (distances[0, 0] - distances[1, 0]).abs() > 1e-3


def test_magic3ds_light_stands_alike_to_each_camera_of_a_set():
    batch = train_batch(light_sample_strategy="magic3d")
    directions = [torch.nn.functional.normalize(batch[key], dim=-1) for key in ("camera_positions", "light_positions")]
    angle = (directions[0] * directions[1]).sum(dim=-1).reshape(2, 4)
    assert torch.allclose(angle, angle[:, :1].expand(2, 4), atol=1e-5)


def test_zoom_and_absolute_distances():
    plain, zoomed = train_batch(), train_batch(zoom_range=[0.5, 0.5])
    assert torch.allclose(zoomed["fovy"], plain["fovy"] / 2)
    assert torch.equal(zoomed["camera_distances"], plain["camera_distances"])
    assert float(train_batch(relative_radius=False)["camera_distances"].max()) <= 1.0


def test_draws_are_the_steps():
    first, same, other = (train_batch(seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first["rays_d"], same["rays_d"]) and not torch.equal(first["rays_d"], other["rays_d"])


def test_stages_and_orbits():
    assert train_batch(step=10)["rays_o"].shape == (4, 8, 8, 3)
    data = module()
    data.setup()
    for loader, views in ((data.val_dataloader(), 4), (data.test_dataloader(), 3), (data.predict_dataloader(), 3)):
        items = list(loader)
        assert len(items) == views and items[0]["rays_o"].shape == (1, 5, 5, 3)
        assert all(float(item["camera_distances"]) == 3.0 for item in items)


BAD = [
    ({"batch_size": [8, 6]}, "data.batch_size: expected a multiple of n_view, which is 4; got 6 views"),
    ({"zoom_range": [1.0, 0.5]}, "data.zoom_range: expected two numbers above 0, the lower first"),
    ({"n_view": 0}, "data.n_view: expected at least 1, got 0"),
    ({"n_views": 4}, "n_view"),
]


@pytest.mark.parametrize("changes, message", BAD)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        module(**changes).setup("fit")


@pytest.mark.parametrize("shared", [False, True])
def test_a_random_background_is_one_for_all_views_or_one_for_each(shared):
    name = "mvdream-neural-environment-map-background"
    background = threestudio.find(name)({"random_aug": True, "random_aug_prob": 1.0, "share_aug_bg": shared})
    drawn = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    directions = torch.nn.functional.normalize(drawn, dim=-1)
    torch.manual_seed(0)
    color = background.train()(directions)
    assert color.shape == (4, 3, 3, 3)
    assert torch.equal(color, color[:, :1, :1].expand_as(color))  # one colour over a picture
    assert len(color[:, 0, 0].unique(dim=0)) == (1 if shared else 4)
    trained = background.eval()(directions)
    assert len(trained.reshape(-1, 3).unique(dim=0)) == 36  # the network's own
    assert torch.equal(trained, background(directions))


def test_the_system_is_dreamfusions_step():
    assert issubclass(threestudio.find("mvdream-system"), threestudio.find("dreamfusion-system"))
