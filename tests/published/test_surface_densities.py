"""Densities and opacities of signed distances: VolSDF and NeuS, in numbers."""

import math

import numpy as np
import pytest
import torch
from turboprop.world.cameras import orbit_c2w, pixel_rays

import threestudio
from threestudio.models.renderers.neus_volume_renderer import LearnedVariance
from threestudio.models.renderers.surface_density import annealed_cosine, neus_alpha, volsdf_density, volsdf_outline

LN2 = math.log(2)


@pytest.mark.parametrize("a", [20.0, torch.tensor(20.0)])
def test_volsdf_is_the_laplace_distributions(a):
    """sigma = a Psi_b(-s) with a = 1 / b (Yariv et al. 2021, equations 2 and 3): Psi(-b ln 2) is 1/4."""
    s = torch.tensor([0.0, LN2 / 20, -LN2 / 20, 10.0, -10.0])
    assert volsdf_density(s, a).tolist() == pytest.approx([10.0, 5.0, 15.0, 0.0, 20.0], rel=1e-5)


def test_density_in_closed_form():
    """a (1 - exp(a s) / 2) inside, a exp(-a s) / 2 outside (Yariv et al. 2021, eq. 3)."""
    for a in (5.0, 40.0):
        s = torch.linspace(-0.5, 0.5, 101, dtype=torch.float64)
        expected = torch.where(s <= 0, a * (1 - 0.5 * torch.exp(a * s)), 0.5 * a * torch.exp(-a * s))
        assert torch.allclose(volsdf_density(s, a), expected, atol=1e-12)


@pytest.mark.parametrize("a, radius, tolerance", [(160.0, 0.1, 0.12), (160.0, 0.5, 0.03), (40.0, 0.5, 0.08)])
def test_the_outline_of_a_ball_is_where_a_passing_ray_is_half_opaque(a, radius, tolerance):
    """The integral of the density along a straight line at the outline's distance from the ball.

    It is ln 2 but for the ball's own growth to that distance.
    """
    outline = volsdf_outline(a, radius)
    along = torch.linspace(-4, 4, 400_001, dtype=torch.float64)
    distance = (along.square() + (radius + outline) ** 2).sqrt() - radius
    depth = float(volsdf_density(distance, a).sum() * (along[1] - along[0]))
    assert depth == pytest.approx(LN2, rel=tolerance)
    assert volsdf_outline(1.0, 1e-3) == 0  # of what is nowhere half opaque


def test_density_limits_and_slope():
    a = 30.0
    s = torch.tensor([-100.0, 0.0, 100.0])
    assert volsdf_density(s, a).tolist() == [a, a / 2, 0]
    s = torch.tensor([-0.3, -0.01, 0.02, 0.2], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(volsdf_density(s, a).sum(), s)
    assert torch.allclose(slope, -0.5 * a**2 * torch.exp(-a * s.abs()))  # the Laplace density
    assert bool((volsdf_density(torch.linspace(-1, 1, 500), a).diff() <= 0).all())


def test_threestudios_cap_on_the_density():
    thin = LearnedVariance(0.7)
    assert thin.inv_std.item() == pytest.approx(math.exp(7), rel=1e-5)
    assert volsdf_density(torch.tensor([-1.0]), thin.volsdf_inv_std).item() == pytest.approx(80)


def test_neus_opacity_of_an_interval():
    """Distances 0.2 to 0 over an interval of 0.2, s = 10: (Phi(2) - Phi(0)) / Phi(2), Phi the logistic function."""
    sdf, length, s = torch.tensor([[0.1]]), torch.tensor([[0.2]]), torch.tensor(10.0)
    phi = 1 / (1 + math.exp(-2))
    assert neus_alpha(sdf, torch.tensor([[-1.0]]), length, s).item() == pytest.approx((phi - 0.5) / phi, rel=1e-5)
    oblique = 1 / (1 + math.exp(-1.5)), 1 / (1 + math.exp(-0.5))  # cosine -1/2: distances 0.15 to 0.05
    found = neus_alpha(sdf, torch.tensor([[-0.5]]), length, s).item()
    assert found == pytest.approx((oblique[0] - oblique[1]) / oblique[0], rel=1e-5)
    assert neus_alpha(sdf, torch.tensor([[0.0]]), length, s).item() == 0


@pytest.mark.parametrize("anneal, sideways", [(0.0, -0.5), (0.5, -0.25), (1.0, 0.0)])
def test_the_cosine_at_the_start_of_training(anneal, sideways):
    """-((1 - cos) / 2 (1 - r) + relu(-cos) r), as in the NeuS authors' code; cosines -1, 0, 1."""
    assert annealed_cosine(torch.tensor([-1.0, 0.0, 1.0]), anneal).tolist() == pytest.approx([-1, sideways, 0])


def test_the_learned_width():
    assert LearnedVariance(0.3).inv_std.item() == pytest.approx(math.exp(3), rel=1e-5)
    assert LearnedVariance(0.340119).inv_std.item() == pytest.approx(30, rel=1e-4)  # ScaleDreamer's


SPHERE = 0.5


def exact_opacity(origins: np.ndarray, directions: np.ndarray, a: float) -> np.ndarray:
    """1 - exp(-integral of VolSDF's density) of a sphere [R], by 20,000 steps between distances 1.2 and 4.2."""
    t = np.linspace(1.2, 4.2, 20001)
    opacity = []
    for origin, direction in zip(origins, directions):
        points = origin + (0.5 * (t[1:] + t[:-1]))[:, None] * direction
        s = np.linalg.norm(points, axis=1) - SPHERE
        density = a * (0.5 - 0.5 * np.sign(s) * (1 - np.exp(-np.abs(s) * a)))
        opacity.append(1 - np.exp(-(density * np.diff(t)).sum()))
    return np.array(opacity)


@torch.no_grad()
def opacity_errors(**config) -> np.ndarray:
    """Errors of the rays' opacity in a sphere's picture by the generative renderer [400]."""
    torch.manual_seed(0)
    shape = threestudio.find("turboprop-3dconv-net")({
        "radius": 1.0, "text_dim": 6, "noise_dim": 3, "style_dim": 8, "feature_dim": 5, "hidden_dim": 8,
        "channels": [6, 5, 4, 4], "sphere_radius": SPHERE,
    })  # fmt: skip
    parts = {
        "geometry": shape,
        "material": threestudio.find("no-material")({}),
        "background": threestudio.find("turboprop-plain-background")({}),
    }
    made = threestudio.find("turboprop-generative-volsdf-renderer")({"radius": 1.0, **config}, **parts).eval()
    c2w = orbit_c2w(torch.tensor([20.0]), torch.tensor([30.0]), torch.tensor([2.7]))
    origins, directions = pixel_rays(c2w, torch.tensor([math.radians(40.0)]), 20, 20)
    out = made(rays_o=origins, rays_d=directions, noise=torch.randn(1, 3), text_embed=torch.randn(1, 6))
    rays = [x.reshape(-1, 3).double().numpy() for x in (origins, directions)]
    exact = exact_opacity(*rays, made.cfg.inv_std)
    return out["opacity"].flatten().double().numpy() - exact


def test_the_generative_renderer_keeps_to_the_integral():
    """What is not shaded is missing from opacity. By default that is 6e-4 in the mean and 5e-3 at most here."""
    errors = np.abs(opacity_errors())
    assert errors.mean() < 1e-3 and errors.max() < 7e-3
    coarse = np.abs(opacity_errors(min_weight=1e-3))
    assert coarse.mean() > 3 * errors.mean()
    assert np.abs(opacity_errors(min_weight=0.0)).mean() < errors.mean()


def test_scaledreamers_sample_keys_have_its_roles():
    """64 further edges and 128 intervals that tile the ray, by its defaults; under our own name the keys say so."""
    parts = {
        "geometry": threestudio.find("turboprop-3dconv-net")({
            "radius": 1.0, "text_dim": 2, "noise_dim": 0, "style_dim": 4, "channels": [4, 4],
        }),
        "material": threestudio.find("no-material")({}),
        "background": threestudio.find("turboprop-plain-background")({}),
    }  # fmt: skip
    rays = {
        "rays_o": torch.tensor([-3.0, 0.01, 0.01]).view(1, 1, 1, 3),
        "rays_d": torch.tensor([1.0, 0, 0]).view(1, 1, 1, 3),
        "text_embed": torch.zeros(1, 2),
    }
    pictures = []
    for name, keys in {
        "generative-space-volsdf-volume-renderer": (24, 48),
        "turboprop-generative-volsdf-renderer": (48, 24),
    }.items():
        options = {"num_samples_per_ray": keys[0], "num_samples_per_ray_importance": keys[1], "min_weight": 0.0}
        made = threestudio.find(name)({"radius": 1.0, **options}, **parts).eval()
        torch.manual_seed(0)
        pictures.append(made(**rays, bg_color=torch.zeros(1, 3))["depth"].item())
    assert pictures[0] == pictures[1]
    swapped = {"radius": 1.0, "num_samples_per_ray": 24, "num_samples_per_ray_importance": 48, "min_weight": 0.0}
    made = threestudio.find("turboprop-generative-volsdf-renderer")(swapped, **parts).eval()
    assert made(**rays, bg_color=torch.zeros(1, 3))["depth"].item() != pictures[0]
