"""Prompts and cameras of a step."""

import json
from types import SimpleNamespace

import pytest
import torch
from turboprop.amortized.data import MultiPromptIterableDataset, prompts_at

import threestudio
from threestudio.systems import keyed_steps

PROMPTS = [f"prompt {i}" for i in range(7)]


def module(**changes):
    options = {
        "prompts": PROMPTS, "batch_size": 3, "n_view": 4, "height": 4, "width": 6, "noise_dim": 5,
        "camera_perturb": 0.0, "center_perturb": 0.0, "up_perturb": 0.0, "elevation_range": [-10, 60],
        "camera_distance_range": [2.5, 2.9], "eval_height": 5, "eval_width": 5, "n_val_views": 3, "n_test_views": 4,
    }  # fmt: skip
    return threestudio.find("turboprop-multiprompt-camera-datamodule")({**options, **changes})


def test_every_prompt_once_a_pass():
    for count in (1, 3, 7, 10):
        drawn = [p for step in range(21) for p in prompts_at(PROMPTS, step, count)]
        assert len(drawn) == 21 * count
        for begin in range(0, len(drawn) - 6, 7):
            assert sorted(drawn[begin : begin + 7]) == PROMPTS


def test_order_is_a_function_of_the_step_alone():
    later = prompts_at(PROMPTS, 12, 3)
    torch.manual_seed(99)
    for step in range(12):
        prompts_at(PROMPTS, step, 3)
    state = torch.get_rng_state()
    assert prompts_at(PROMPTS, 12, 3) == later
    assert torch.equal(torch.get_rng_state(), state)  # no draw of the step is used up
    passes = {tuple(prompts_at(PROMPTS, turn, 7)) for turn in range(6)}
    assert len(passes) > 3  # each pass in an order of its own


def train_batch(data, step: int = 0, seed: int = 0) -> dict:
    data.setup("fit")
    data.train_dataset.update_step(0, step)
    torch.manual_seed(seed)
    return data.train_dataset.collate({})


def test_a_step_holds_v_cameras_of_each_of_p_prompts():
    batch = train_batch(module(), step=5)
    assert batch["prompt"] == prompts_at(PROMPTS, 5, 3)
    assert batch["noise"].shape == (3, 5)
    assert batch["rays_o"].shape == batch["rays_d"].shape == (12, 4, 6, 3)
    for name in ("elevation", "azimuth", "camera_distances", "fovy"):
        assert batch[name].shape == (12,)
    assert batch["c2w"].shape == batch["mvp_mtx"].shape == (12, 4, 4)


@pytest.mark.parametrize("accumulated, processes", [(1, 1), (4, 1), (1, 2), (2, 2)])
def test_each_batch_of_a_step_has_prompts_of_its_own(accumulated, processes, monkeypatch):
    """ScaleDreamer's configs for MVDream accumulate gradients over 8 batches of one prompt, that of 8 prompts a step.

    On several processes each has other prompts, too: there each reads its share of the library.
    """
    data = module(batch_size=1)
    data.setup("fit")
    progress = SimpleNamespace(total=SimpleNamespace(processed=0))
    trainer = SimpleNamespace(
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)), current_epoch=0,
        accumulate_grad_batches=accumulated, world_size=processes,
    )  # fmt: skip
    drawn = {}
    for rank in range(processes):
        monkeypatch.setattr(keyed_steps, "get_rank", lambda rank=rank: rank)
        batches = iter(keyed_steps.KeyedLoader(data.train_dataloader(), trainer, seed=0))
        for index in range(14):
            drawn[index, rank] = next(batches)["prompt"][0]
            assert data.train_dataset.step == index // accumulated
            data.train_dataset.update_step(0, index // accumulated)  # as a system does before its step
    in_order = [drawn[key] for key in sorted(drawn)]
    for begin in range(0, len(in_order) - 6, 7):
        assert sorted(in_order[begin : begin + 7]) == PROMPTS


def test_each_prompt_is_seen_from_all_around():
    """V cameras of a prompt: one in each of V sectors; all P V of them: one in each of P V."""
    for seed in range(5):
        azimuth = train_batch(module(), seed=seed)["azimuth"]
        by_prompt = torch.remainder(azimuth, 360).reshape(3, 4).sort(1).values
        gaps = torch.cat([by_prompt.diff(dim=1), by_prompt[:, :1] + 360 - by_prompt[:, -1:]], 1)
        assert float(gaps.min()) >= 90 - 30 and float(gaps.max()) <= 90 + 30
        sectors = (torch.remainder(azimuth + 180, 360) / 30).floor().long()
        assert sorted(sectors.tolist()) == list(range(12))


def test_everything_of_a_camera_is_moved_together():
    batch = train_batch(module())
    position = batch["c2w"][:, :3, 3]
    azimuth = torch.atan2(position[:, 1], position[:, 0]).rad2deg()
    assert torch.allclose(torch.remainder(azimuth - batch["azimuth"] + 180, 360), torch.full((12,), 180.0), atol=1e-2)
    assert torch.allclose(position.norm(dim=-1), batch["camera_distances"], atol=1e-5)
    assert torch.allclose(torch.asin(position[:, 2] / position.norm(dim=-1)).rad2deg(), batch["elevation"], atol=1e-2)
    assert torch.equal(batch["camera_positions"], position)
    assert torch.equal(batch["rays_o"][:, 0, 0], position)
    centre = torch.nn.functional.normalize(batch["rays_d"].mean((1, 2)), dim=-1)
    assert torch.allclose(centre, -position / position.norm(dim=-1, keepdim=True), atol=1e-3)


def test_draws_come_from_the_global_generator():
    first, same, other = (train_batch(module(), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first["noise"], same["noise"]) and torch.equal(first["rays_d"], same["rays_d"])
    assert not torch.equal(first["noise"], other["noise"])


def test_stages_of_growing_pictures():
    data = module(batch_size=[3, 2], height=[4, 8], width=[4, 8], resolution_milestones=[10])
    early, late = train_batch(data, step=9), train_batch(data, step=10)
    assert early["rays_o"].shape == (12, 4, 4, 3) and len(early["prompt"]) == 3
    assert late["rays_o"].shape == (8, 8, 8, 3) and len(late["prompt"]) == 2


def test_evaluation_orbits_each_prompt_with_one_noise():
    data = module()
    data.setup("fit")
    data.setup("test")
    for loader, views in ((data.val_dataloader(), 3), (data.test_dataloader(), 4), (data.predict_dataloader(), 4)):
        items = list(loader)
        assert [item["prompt"] for item in items] == [[p] for p in PROMPTS]
        for index, item in enumerate(items):
            assert item["index"] == index
            assert item["rays_o"].shape == (views, 5, 5, 3)
            assert torch.equal(item["noise"], items[0]["noise"]) and item["noise"].shape == (1, 5)
    again = module()
    again.setup("test")
    assert torch.equal(again.test_dataset[2]["noise"], items[0]["noise"])


def test_a_library_has_its_splits(tmp_path):
    path = tmp_path / "library.json"
    path.write_text(json.dumps({"train": ["a", "b"], "val": ["c"], "test": ["d", "e", "f"]}))
    data = module(prompts=None, prompt_library=str(path))
    data.setup("fit")
    data.setup("test")
    assert data.train_dataset.prompts == ["a", "b"]
    assert data.val_dataset.prompts == ["c"] and data.test_dataset.prompts == ["d", "e", "f"]


BAD = [
    ({"prompts": None}, "expected prompt_library .* or prompts, got neither"),
    ({"prompt_library": "x.json"}, "expected prompt_library or prompts, got both"),
    ({"prompts": []}, "prompts is empty"),
    ({"prompts": ["a", "  "]}, r"prompts\[1\]: expected a text, got an empty prompt"),
    ({"n_view": 0}, "data.n_view: expected at least 1, got 0"),
    ({"prompts": None, "prompt_library": "nowhere"}, "no file 'nowhere'"),
    ({"n_views": 2}, "n_view"),
]


@pytest.mark.parametrize("changes, message", BAD)
def test_bad_input(changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        module(**changes)


def test_camera_ranges_are_checked_before_training():
    with pytest.raises(ValueError, match="elevation_range"):
        module(elevation_range=[50, 10]).setup("fit")


def test_scaledreamers_name():
    name = "multiprompt-camera-datamodule"
    assert issubclass(threestudio.find(name), threestudio.find(f"turboprop-{name}"))
    assert MultiPromptIterableDataset.__mro__[1].__name__ == "IterableDataset"


def set_values(batch: dict, views: int) -> dict:
    """What the cameras of each set have in common: [P, V] of each."""
    return {name: batch[name].reshape(-1, views) for name in ("elevation", "camera_distances", "fovy", "azimuth")}


@pytest.mark.parametrize("views, prompts", [(4, 3), (3, 1), (1, 2)])
def test_view_sets_stand_at_equal_steps_with_all_else_equal(views, prompts):
    for seed in range(4):
        values = set_values(train_batch(module(view_sets=True, n_view=views, batch_size=prompts), seed=seed), views)
        azimuth = values.pop("azimuth")
        assert torch.allclose(azimuth.diff(dim=1), torch.full((prompts, views - 1), 360.0 / views), atol=1e-3)
        assert float(azimuth.min()) >= -180 and float(azimuth.max()) < 180
        for value in values.values():
            assert torch.equal(value, value[:, :1].expand(-1, views))


def test_sets_of_different_prompts_differ_and_divide_a_step_among_them():
    values = set_values(train_batch(module(view_sets=True)), 4)
    for name in ("elevation", "camera_distances", "fovy"):
        assert len(values[name][:, 0].unique()) == 3
    firsts = values["azimuth"][:, 0] + 180  # within the first step, of 90 degrees
    assert ((firsts / 30).floor() == torch.arange(3)).all()


def test_cameras_of_view_sets_are_where_the_batch_says():
    batch = train_batch(module(view_sets=True))
    position = batch["c2w"][:, :3, 3]
    elevation, azimuth = batch["elevation"].deg2rad(), batch["azimuth"].deg2rad()
    unit = torch.stack([elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], -1)
    assert torch.allclose(position, unit * batch["camera_distances"][:, None], atol=1e-5)
    assert torch.allclose(batch["c2w"][:, :3, 2], unit, atol=1e-5)  # the origin is straight ahead
    half_height = torch.atan(1 / batch["proj_mtx"][:, 1, 1].abs())
    assert torch.allclose(2 * half_height, batch["fovy"], atol=1e-5)


def test_view_sets_draw_from_the_global_generator_and_follow_the_stages():
    data = module(view_sets=True, batch_size=[3, 2], height=[4, 8], width=[4, 8], resolution_milestones=[10])
    first, same = train_batch(data, step=9, seed=5), train_batch(data, step=9, seed=5)
    assert all(torch.equal(first[k], same[k]) for k in ("c2w", "fovy", "light_positions", "noise"))
    late = train_batch(data, step=10)
    assert late["rays_o"].shape == (8, 8, 8, 3) and len(late["prompt"]) == 2


def scaledreamer_module(**changes):
    options = {"prompts": PROMPTS, "batch_size": 8, "n_view": 4, "height": 4, "width": 4, "camera_perturb": 0.0,
               "center_perturb": 0.0, "up_perturb": 0.0, "elevation_range": [0, 30], "fovy_range": [15, 60],
               "camera_distance_range": [0.8, 1.0]}  # fmt: skip
    return threestudio.find("multiprompt-multiview-camera-datamodule")({**options, **changes})


def test_scaledreamers_views_are_counted_and_as_far_as_their_field_of_view_asks():
    batch = train_batch(scaledreamer_module())
    assert batch["rays_o"].shape[0] == 8 and len(batch["prompt"]) == 2 and batch["noise"].shape[0] == 2
    relative = batch["camera_distances"] * torch.tan(0.5 * batch["fovy"])
    assert float(relative.min()) >= 0.8 - 1e-5 and float(relative.max()) <= 1.0 + 1e-5
    assert float(batch["camera_distances"].max()) > 1.0
    plain = train_batch(scaledreamer_module(relative_radius=False))
    assert float(plain["camera_distances"].max()) <= 1.0


def test_zoom_narrows_the_field_of_view_and_leaves_the_distance():
    zoomed, plain = train_batch(scaledreamer_module(zoom_range=[0.5, 0.5])), train_batch(scaledreamer_module())
    assert torch.allclose(zoomed["fovy"], 0.5 * plain["fovy"])
    assert torch.equal(zoomed["camera_distances"], plain["camera_distances"])


BAD_SETS = [
    ({"batch_size": 6}, "data.batch_size: expected a multiple of n_view, which is 4; got 6 views"),
    ({"zoom_range": [1.0, 0.5]}, "data.zoom_range: expected two numbers above 0, the lower first"),
    ({"zoom_range": [0.0, 1.0]}, "data.zoom_range"),
    ({"n_view": 0}, "data.n_view: expected at least 1, got 0"),
]


@pytest.mark.parametrize("changes, message", BAD_SETS)
def test_view_sets_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        scaledreamer_module(**changes)
