"""The NeRF renderer and its estimators on fields whose images are known."""

import math

import pytest
import torch
import torch.nn.functional as F

import threestudio
from threestudio.models.estimators import ImportanceEstimator, OccupancyGridEstimator
from threestudio.models.geometry.base import BaseImplicitGeometry
from threestudio.models.renderers.volume_parts import shade_samples
from threestudio.utils.errors import UserError

BOX = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
SIZE = 16


class Ball(BaseImplicitGeometry):
    """A ball of radius 0.5 with density ``height`` (soft: falling off towards its border), and features by position."""

    height = 40.0
    soft = False

    def forward_density(self, points):
        r = points.norm(dim=-1, keepdim=True)
        shape = ((0.5 - r) / 0.1).clamp(0, 1) ** 2 if self.soft else (r < 0.5).float()
        return self.height * shape

    def forward(self, points, output_normal=False):
        out = {"density": self.forward_density(points), "features": points * 4}
        if output_normal:
            out["normal"] = out["shading_normal"] = F.normalize(points, dim=-1)
        return out


def scene(estimator="occgrid", background=(0.2, 0.4, 0.6), material="no-material", soft=False, height=40.0, **config):
    geometry = Ball({})
    geometry.soft, geometry.height = soft, height
    parts = {
        "geometry": geometry,
        "material": threestudio.find(material)({}),
        "background": threestudio.find("solid-color-background")({"color": background}),
    }
    renderer = threestudio.find("nerf-volume-renderer")({"estimator": estimator, **config}, **parts)
    for step in range(0, 256, 16):
        renderer.do_update_step(0, step)
    return renderer


def batch(n_views=2):
    data = threestudio.find("random-camera-datamodule")(
        {
            "n_test_views": n_views,
            "eval_height": SIZE,
            "eval_width": SIZE,
            "eval_camera_distance": 2.0,
            "eval_fovy_deg": 50,
        }
    )
    data.setup("test")
    views = [next(iter([view])) for view in data.test_dataloader()]
    return {
        k: torch.cat([v[k] for v in views]) if isinstance(views[0][k], torch.Tensor) else views[0][k] for k in views[0]
    }


def chord(rays_o, rays_d, radius=0.5):
    """Length of each ray inside the ball, and the middle of the chord."""
    middle = -(rays_o * rays_d).sum(-1, keepdim=True)
    distance2 = (rays_o + middle * rays_d).square().sum(-1, keepdim=True)
    return 2 * (radius**2 - distance2).clamp(min=0).sqrt(), middle


@pytest.mark.parametrize("estimator", ["occgrid", "importance"])
def test_ball_has_its_closed_form(estimator):
    torch.manual_seed(0)
    renderer = scene(
        estimator,
        height=3.0,
        num_samples_per_ray=1024,
        num_samples_per_ray_importance=1024,
        prune_alpha_threshold=False,
    ).eval()
    rays = batch()
    with torch.no_grad():
        out = renderer(**rays)
    length, middle = chord(rays["rays_o"], rays["rays_d"])
    opacity = 1 - torch.exp(-3.0 * length)
    # Rays that graze the border may pass through a corner of a cell that no random point has found occupied.
    error = (out["opacity"] - opacity).abs()
    assert error.max() < 0.08 and error.mean() < 0.002 and error.median() < 1e-3
    # Mean depth of absorption in a slab (tests/ops/test_volume_rendering.py), from where the ray enters.
    depth = opacity * (middle - length / 2 + 1 / 3.0) - length * (1 - opacity)
    error = (out["depth"] - depth).abs()
    assert error.max() < 0.15 and error.mean() < 0.004
    torch.testing.assert_close(out["comp_rgb"], out["comp_rgb_fg"] + (1 - out["opacity"]) * out["comp_rgb_bg"])
    torch.testing.assert_close(out["comp_rgb_bg"], torch.tensor([0.2, 0.4, 0.6]).expand_as(out["comp_rgb"]))
    assert not out["opacity"].requires_grad


def test_estimators_agree_on_a_smooth_field():
    rays = batch()
    images = []
    for estimator in ("occgrid", "importance"):
        torch.manual_seed(0)
        renderer = scene(
            estimator, soft=True, height=20.0, num_samples_per_ray_importance=128, prune_alpha_threshold=False
        ).eval()
        with torch.no_grad():
            images.append(renderer(**rays))
    for key in ("comp_rgb", "opacity", "depth"):
        assert (images[0][key] - images[1][key]).abs().max() < 0.06, key
        assert (images[0][key] - images[1][key]).abs().mean() < 0.006, key


@pytest.mark.parametrize("estimator", ["occgrid", "importance"])
def test_training_outputs_have_upstreams_names_and_shapes(estimator):
    renderer = scene(
        estimator, material="diffuse-with-point-light-material", return_comp_normal=True, return_normal_perturb=True
    )
    out = renderer(**batch())
    for key, channels in {
        "comp_rgb": 3,
        "comp_rgb_fg": 3,
        "comp_rgb_bg": 3,
        "opacity": 1,
        "depth": 1,
        "z_variance": 1,
        "comp_normal": 3,
    }.items():
        assert out[key].shape == (2, SIZE, SIZE, channels), key
    n = out["ray_indices"].shape[0]
    for key, channels in {
        "weights": 1,
        "t_points": 1,
        "t_intervals": 1,
        "t_dirs": 3,
        "points": 3,
        "density": 1,
        "features": 3,
        "normal": 3,
        "normal_perturb": 3,
    }.items():
        assert out[key].shape == (n, channels), key
    assert (out["ray_indices"].diff() >= 0).all()
    per_ray = torch.zeros(2 * SIZE * SIZE).index_add(0, out["ray_indices"], out["weights"][:, 0])
    torch.testing.assert_close(per_ray.view(2, SIZE, SIZE, 1), out["opacity"])
    assert (out["z_variance"] >= 0).all()


def test_evaluation_gives_normals_in_colours_and_is_chunked():
    rays = batch()
    torch.manual_seed(0)
    renderer = scene(material="diffuse-with-point-light-material").eval()
    with torch.no_grad():
        whole = renderer(**rays)
        renderer.cfg.eval_chunk_size = 100
        parts = renderer(**rays)
    assert set(whole) == {"comp_rgb", "comp_rgb_fg", "comp_rgb_bg", "opacity", "depth", "z_variance", "comp_normal"}
    for key in whole:
        torch.testing.assert_close(whole[key], parts[key])
    middle = whole["comp_normal"][0, SIZE // 2, SIZE // 2] * 2 - 1
    assert F.cosine_similarity(middle, F.normalize(rays["camera_positions"][0], dim=-1), dim=0) > 0.98


@pytest.mark.parametrize("estimator", ["occgrid", "importance"])
def test_rays_that_meet_nothing_show_the_background(estimator):
    rays = batch()
    rays["rays_d"] = -rays["rays_d"]  # looking away
    for renderer in (scene(estimator), scene(estimator).eval()):
        out = renderer(**rays)
        assert (out["opacity"] == 0).all() and torch.isfinite(out["depth"]).all()
        torch.testing.assert_close(out["comp_rgb"], out["comp_rgb_bg"])


def test_an_empty_field_trains_without_nan():
    renderer = scene(height=0.0)
    out = renderer(**batch())
    assert out["weights"].shape == (1, 1) and (out["opacity"] == 0).all()
    assert all(torch.isfinite(v).all() for v in out.values())


def test_background_override_per_image_and_per_pixel():
    renderer, rays = scene().eval(), batch()
    colors = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    for bg_color in (colors, colors[:, None, None].expand(2, SIZE, SIZE, 3)):
        out = renderer(**rays, bg_color=bg_color)
        torch.testing.assert_close(out["comp_rgb"][1, 0, 0], torch.tensor([0.0, 1, 0]))


def test_near_and_far_planes_cut():
    rays = batch()
    with torch.no_grad():
        half = scene(height=3.0, far_plane=2.0, prune_alpha_threshold=False).eval()(**rays)["opacity"]
        whole = scene(height=3.0, prune_alpha_threshold=False).eval()(**rays)["opacity"]
    center = (slice(None), SIZE // 2, SIZE // 2, 0)
    assert half[center].mean().item() == pytest.approx(1 - math.exp(-1.5), abs=0.05)
    assert whole[center].mean().item() == pytest.approx(1 - math.exp(-3.0), abs=0.05)


def test_gradients_reach_the_field_and_repeat_bit_for_bit():
    def run():
        torch.manual_seed(0)
        geometry = threestudio.find("implicit-volume")(
            {
                "pos_encoding_config": {
                    "otype": "HashGrid",
                    "n_levels": 3,
                    "n_features_per_level": 2,
                    "log2_hashmap_size": 8,
                    "base_resolution": 4,
                    "per_level_scale": 1.5,
                }
            }
        )
        renderer = threestudio.find("nerf-volume-renderer")(
            {"num_samples_per_ray": 32},
            geometry=geometry,
            material=threestudio.find("diffuse-with-point-light-material")({}),
            background=threestudio.find("solid-color-background")({}),
        )
        renderer.do_update_step(0, 0)
        out = renderer(**batch())
        (out["comp_rgb"].square().mean() + out["normal"][:, 0].mean()).backward()
        return [p.grad for p in geometry.parameters()] + [out["comp_rgb"]]

    first, second = run(), run()
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert all(g.abs().sum() > 0 for g in first)


def test_scene_parts_are_not_the_renderers_modules():
    renderer = scene()
    assert not any(key.startswith(("geometry", "material", "background", "_parts")) for key in renderer.state_dict())
    other = Ball({})
    renderer.set_geometry(other)
    assert renderer.geometry is other


@pytest.mark.parametrize(
    "config, message",
    [
        ({"estimator": "proposal"}, "proposal.*occgrid"),
        ({"estimator": "grid"}, "estimator.*occgrid"),
        ({"num_samples_per_ray": 0}, "num_samples_per_ray"),
    ],
)
def test_wrong_configs_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        scene(**config)


# ---------------------------------------------------------------------------- estimators


def test_occupied_cells_are_never_lost():
    torch.manual_seed(0)
    ball = Ball({})
    grid = OccupancyGridEstimator(BOX, resolution=16)
    axis = (torch.arange(16) + 0.5) / 8 - 1
    centers = torch.cartesian_prod(axis, axis, axis)
    inside = centers.norm(dim=-1) < 0.5 - math.sqrt(3) / 16  # wholly inside the ball
    outside = centers.norm(dim=-1) > 0.5 + math.sqrt(3) / 16
    assert inside.sum() > 50
    for step in range(0, 4000, 16):
        grid.update_every_n_steps(step, lambda x: ball.forward_density(x) * 0.01)
        occupied = grid.binaries.reshape(-1)
        assert occupied[inside].all(), step
        assert not occupied[outside].any(), step


def test_grid_forgets_what_is_gone_and_only_acts_every_n_steps():
    torch.manual_seed(0)
    grid = OccupancyGridEstimator(BOX, resolution=8)
    grid.update_every_n_steps(0, lambda x: torch.ones(len(x)))
    state = torch.random.get_rng_state()
    grid.update_every_n_steps(7, lambda x: torch.zeros(len(x)))
    assert grid.occs.min() == 1 and torch.equal(torch.random.get_rng_state(), state)
    for step in range(16, 4800, 16):
        grid.update_every_n_steps(step, lambda x: (x[:, 0] > 0).float())
    assert grid.binaries[4:].all() and not grid.binaries[:4].any()


def test_a_thin_field_keeps_cells():
    grid = OccupancyGridEstimator(BOX, resolution=8)
    grid.update_every_n_steps(0, lambda x: 1e-6 * (1 + x[:, 0]))
    assert 0.3 < grid.binaries.float().mean() < 0.7


def test_grid_is_in_the_state():
    grid = OccupancyGridEstimator(BOX, resolution=4)
    grid.update_every_n_steps(0, lambda x: x[:, :1] > 0)
    copy = OccupancyGridEstimator(BOX, resolution=4)
    copy.load_state_dict(grid.state_dict())
    assert torch.equal(copy.binaries, grid.binaries) and torch.equal(copy.occs, grid.occs) and grid.binaries.any()


def test_grid_prune_off_takes_every_cell():
    renderer = scene(grid_prune=False)
    assert renderer.estimator.binaries.all()


def test_sampling_covers_the_ball_whatever_is_pruned():
    """Samples dropped by the grid and by opacity change nothing that can be seen."""
    rays = batch()
    torch.manual_seed(0)
    pruned = scene(soft=True).eval()
    full = scene(soft=True, grid_prune=False, prune_alpha_threshold=False).eval()
    with torch.no_grad():
        difference = (pruned(**rays)["comp_rgb"] - full(**rays)["comp_rgb"]).abs()
        counts = [len(renderer.train()(**rays)["weights"]) for renderer in (pruned, full)]  # of samples
    assert counts[0] < counts[1] / 4
    assert difference.max() < 0.06 and difference.mean() < 0.002


def test_importance_estimator_puts_samples_where_the_matter_is():
    estimator = ImportanceEstimator()
    t_starts, t_ends = estimator.sampling(
        [lambda a, b: 100.0 * ((a + b) / 2 > 2.0).float() * ((a + b) / 2 < 2.2).float()], [128], 64, 5, 0.0, 4.0
    )
    assert t_starts.shape == (5, 128 + 64 + 1) and (t_ends >= t_starts).all()
    assert torch.equal(t_starts[:, 1:], t_ends[:, :-1])
    assert (t_starts[:, 0] == 0).all() and (t_ends[:, -1] == 4).all()
    middle = (t_starts + t_ends) / 2
    near = ((middle > 1.9) & (middle < 2.3)).sum(1)
    assert (near > 60 + 0.4 / 4 * 128).all()  # of the equal intervals a tenth, and nearly all others
    plain, _ = estimator.sampling([], [], 4, 2, torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(plain, torch.tensor([[0, 0.25, 0.5, 0.75], [1, 1.25, 1.5, 1.75]]))
    with pytest.raises(UserError, match="sampling_type"):
        estimator.sampling([], [], 4, 2, 0.0, 1.0, sampling_type="log")
    with pytest.raises(ValueError, match="prop_samples"):
        estimator.sampling([], [3], 4, 2, 0.0, 1.0)


def test_a_material_that_needs_normals_of_a_field_that_has_none_names_the_key():
    encoding = {"otype": "HashGrid", "n_levels": 2, "n_features_per_level": 2, "log2_hashmap_size": 8,
                "base_resolution": 4, "per_level_scale": 1.5}  # fmt: skip
    field = threestudio.find("implicit-volume")({"pos_encoding_config": encoding, "normal_type": None})
    points, directions = torch.zeros(3, 3), F.normalize(torch.ones(3, 3), dim=-1)
    for name in ("diffuse-with-point-light-material", "pbr-material"):
        material = threestudio.find(name)({})
        with pytest.raises(UserError, match="system.geometry.normal_type: the material needs normals"):
            shade_samples(field, material, points, directions, points, {}, True, 0)
