"""Compositing along rays against closed forms, and threestudio's keys of the renderers."""

import math

import pytest
import torch

import threestudio
from threestudio.models.estimators import OccupancyGridEstimator
from threestudio.models.geometry.base import BaseImplicitGeometry
from threestudio.models.renderers.volume_parts import depth_variance
from threestudio.ops.volume_rendering import accumulate_along_rays, render_weight_from_alpha, render_weight_from_density
from threestudio.ops.volume_rendering.reference import render_weight_from_density_dense


def test_weights_of_three_intervals():
    """Densities 1, 2, 0.5 over lengths 0.5, 0.25, 2: optical depths 0.5, 0.5, 1 (Max 1995; NeRF, equation 3)."""
    starts, ends = torch.tensor([0.0, 0.5, 0.75]), torch.tensor([0.5, 0.75, 2.75])
    density, ray = torch.tensor([1.0, 2.0, 0.5]), torch.zeros(3, dtype=torch.long)
    weights, light, alpha = render_weight_from_density(starts, ends, density, ray)
    e = math.exp
    assert light.tolist() == pytest.approx([1, e(-0.5), e(-1)])
    assert alpha.tolist() == pytest.approx([1 - e(-0.5), 1 - e(-0.5), 1 - e(-1)])
    assert weights.tolist() == pytest.approx([1 - e(-0.5), e(-0.5) - e(-1), e(-1) - e(-2)])
    dense, *_ = render_weight_from_density_dense(starts[None], ends[None], density[None])
    torch.testing.assert_close(dense[0], weights)
    by_alpha, light_by_alpha = render_weight_from_alpha(alpha, ray)
    torch.testing.assert_close(by_alpha, weights)
    torch.testing.assert_close(light_by_alpha, light)
    values = torch.tensor([[1.0], [2.0], [4.0]])
    expected = (weights * values[:, 0]).sum().item()
    assert accumulate_along_rays(weights, values, ray, 2)[:, 0].tolist() == pytest.approx([expected, 0])


def test_the_spread_of_depth_is_of_normalised_weights():
    """Halves at 1 and 3 of a ray of opacity 0.6: mean 2, variance 1, as of one of opacity 1; below 0.5 it is 0.

    Not normalised, the first would have 0.6 ((1 - 1.2)^2 + (3 - 1.2)^2) / 2 = 0.984.
    """
    weights = torch.tensor([0.3, 0.3, 0.5, 0.5, 0.2, 0.2], requires_grad=True)
    t, ray = torch.tensor([[1.0], [3.0]] * 3), torch.tensor([0, 0, 1, 1, 3, 3])
    opacity = accumulate_along_rays(weights, None, ray, 4)
    variance = depth_variance(weights, t, opacity, ray)
    assert variance[:, 0].tolist() == pytest.approx([1.0, 1.0, 0.0, 0.0])
    variance[0].sum().backward()
    # d/dw of sum w (t - mean)^2 / sum w is ((t - mean)^2 - variance) / sum w = 0 at either sample: no help to be empty.
    assert weights.grad.abs().max() < 1e-6


class Fog(BaseImplicitGeometry):
    """One density everywhere in the cube of radius 1."""

    density = 0.3

    def configure(self):
        super().configure()
        self.asked = []  # points of each look at the density alone

    def forward_density(self, points):
        self.asked.append(len(points))
        return torch.full_like(points[:, :1], self.density)

    def forward(self, points, output_normal=False):
        return {"density": torch.full_like(points[:, :1], self.density), "features": points}


class Sheet(BaseImplicitGeometry):
    """A signed distance that is the same everywhere."""

    distance = 0.2

    def forward_sdf(self, points):
        return torch.full_like(points[:, :1], self.distance)

    def forward(self, points, output_normal=False):
        normal = torch.tensor([-1.0, 0, 0]).expand_as(points)
        return {"sdf": self.forward_sdf(points), "features": points, "normal": normal, "sdf_grad": normal}


def renderer(geometry, name="nerf-volume-renderer", **config):
    parts = {
        "geometry": geometry,
        "material": threestudio.find("no-material")({"color_activation": "sigmoid"}),
        "background": threestudio.find("solid-color-background")({}),
    }
    return threestudio.find(name)(config, **parts)


def one_ray():
    """Along x through the cube's middle: 2 world units of it."""
    return {
        "rays_o": torch.tensor([-3.0, 0.01, 0.01]).view(1, 1, 1, 3),
        "rays_d": torch.tensor([1.0, 0.0, 0.0]).view(1, 1, 1, 3),
        "light_positions": torch.zeros(1, 3),
    }


@pytest.mark.parametrize("prune_alpha_threshold", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_without_grid_prune_thin_fog_is_seen(prune_alpha_threshold, training):
    """Each of 128 steps has an opacity of 0.008, less than the 0.01 of grid_prune's threshold: all count."""
    keys = {"grid_prune": False, "prune_alpha_threshold": prune_alpha_threshold}
    made = renderer(Fog({}), num_samples_per_ray=128, randomized=False, **keys).train(training)
    out = made(**one_ray())
    assert out["opacity"].item() == pytest.approx(1 - math.exp(-0.3 * 2), abs=3e-3)  # 0.4512; a step may stick out
    assert out["depth"].item() / out["opacity"].item() == pytest.approx(
        2 + 1 / 0.3 - 2 * math.exp(-0.6) / (1 - math.exp(-0.6)), abs=0.02
    )


@pytest.mark.parametrize("mode", [{"use_volsdf": True}, {}])
def test_without_grid_prune_neus_drops_nothing_either(mode):
    """One distance everywhere, and normals against the ray: each step has an opacity of less than 0.01."""
    geometry = Sheet({})
    keys = {"num_samples_per_ray": 128, "grid_prune": False, "randomized": False, **mode}
    out = renderer(geometry, "neus-volume-renderer", **keys).eval()(**one_ray())
    s, step = math.exp(3), 1.732 * 2 / 128
    if mode:
        alpha = 1 - math.exp(-0.5 * s * math.exp(-geometry.distance * s) * step)
    else:
        before, after = (1 / (1 + math.exp(-s * (geometry.distance + side * step / 2))) for side in (1, -1))
        alpha = (before - after) / before
    assert 0.002 < alpha < 0.01
    assert out["opacity"].item() == pytest.approx(1 - (1 - alpha) ** math.ceil(2 / step), abs=1e-4)


@pytest.mark.parametrize("name, geometry, mode", [
    ("nerf-volume-renderer", Fog, {}),
    ("neus-volume-renderer", Sheet, {"use_volsdf": True}),
])  # fmt: skip
def test_importance_sampling_has_upstreams_counts(name, geometry, mode):
    """64 coarse intervals (num_samples_per_ray_importance), 128 fine ones, and their edges together: 193 intervals."""
    keys = {"estimator": "importance", "num_samples_per_ray": 128, "num_samples_per_ray_importance": 64, **mode}
    out = renderer(field := geometry({}), name, **keys).train()(**one_ray())
    assert out["weights"].shape == (193, 1)
    assert out["t_intervals"].sum().item() == pytest.approx(2, abs=1e-5) and (out["t_intervals"] >= 0).all()
    if geometry is Fog:
        assert field.asked == [64]
        assert out["opacity"].item() == pytest.approx(1 - math.exp(-0.6), abs=1e-5)


BOX = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])


def test_an_occupancy_grid_forgets_by_a_twentieth():
    """Mueller et al. 2022, appendix E.2: a cell keeps 0.95 of its value each 16 steps, or takes what is seen now."""
    grid = OccupancyGridEstimator(BOX, resolution=2)
    grid.update_every_n_steps(0, lambda x: 0.5 + 0.1 * (x[:, 0] > 0))
    grid.update_every_n_steps(16, lambda x: 0.58 * (x[:, 0] > 0))
    assert grid.occs.tolist() == pytest.approx([0.5 * 0.95] * 4 + [0.58] * 4)


@pytest.mark.parametrize("low, high", [(0.0095, 0.0105), (0.004, 0.006)])
def test_cells_are_occupied_above_a_hundredth_or_the_mean(low, high):
    """nerfacc's, for instant-ngp's grid: 0.01, and of a field that is thinner the mean."""
    grid = OccupancyGridEstimator(BOX, resolution=2)
    grid.update_every_n_steps(0, lambda x: low + (high - low) * (x[:, 0] > 0))
    assert grid.binaries[1].all() and not grid.binaries[0].any()
    grid.update_every_n_steps(16, lambda x: 0.02 + 0.06 * (x[:, 0] > 0))  # less than the mean, more than 0.01
    assert grid.binaries.all()


def test_what_a_ten_thousandth_of_the_light_reaches_is_left_out():
    """Steps of optical depth 2.5 have exp(-2.5 k) of the light left before them: more than 1e-4 for k up to 3."""
    grid = OccupancyGridEstimator(BOX, resolution=2)
    grid.fill()
    ray = one_ray()
    options = {"sigma_fn": lambda start, end, ray: torch.full_like(start, 12.5), "render_step_size": 0.2}
    samples = grid.sampling(ray["rays_o"].view(1, 3), ray["rays_d"].view(1, 3), **options)
    assert samples.t_starts.tolist() == pytest.approx([2.0, 2.2, 2.4, 2.6], abs=1e-5)
