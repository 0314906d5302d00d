"""The renderer on spheres, whose pictures are known, and over several prompts."""

import math

import pytest
import torch

from tests.amortized.scenes import DISTANCE, FOVY, SPHERE, give_heads_weights, rays, scene
from threestudio.systems.losses import eikonal_loss


@torch.no_grad()
def test_a_thin_sphere_in_closed_form():
    shape, renderer = scene(
        {"inv_std": 400.0, "num_samples_per_ray": 160, "num_samples_per_ray_importance": 160},
        finite_difference_eps=1e-3,
    )
    batch = rays(2, 48)
    out = renderer(**batch, noise=torch.randn(1, 3), text_embed=torch.randn(1, 6), bg_color=torch.zeros(2, 3))
    focal = 0.5 * 48 / math.tan(FOVY / 2)
    area = math.pi * (focal * math.tan(math.asin(SPHERE / DISTANCE))) ** 2
    # A ray that passes at a few times 1 / inv_std sees some density: the picture is a little larger than the sphere.
    assert out["opacity"].sum((1, 2, 3)).tolist() == pytest.approx([area] * 2, rel=0.03)
    o, d = batch["rays_o"], batch["rays_d"]
    half_b = (o * d).sum(-1)
    root = half_b.square() - o.square().sum(-1) + SPHERE**2
    depth = -half_b - root.clamp_min(0).sqrt()
    points = o + depth[..., None] * d
    facing = -(points / SPHERE * d).sum(-1)
    steady = (root > 0) & (facing > 0.4)
    assert bool((out["opacity"][..., 0][steady] > 0.98).all())
    assert float((out["depth"][..., 0] / out["opacity"][..., 0].clamp_min(0.1) - depth)[steady].abs().max()) < 0.015
    normal = out["comp_normal"] / out["opacity"].clamp_min(0.1) * 2 - 1
    assert float((normal - points / SPHERE)[steady].abs().max()) < 0.03
    missed = root < -0.02
    assert float(out["opacity"][..., 0][missed].max()) < 0.01
    grey = out["comp_rgb"][steady] / out["opacity"][steady]
    assert torch.allclose(grey, torch.full_like(grey, 0.5), atol=1e-3)  # sigmoid(0)


@torch.no_grad()
def test_opacity_of_a_soft_sphere_is_the_integral_of_its_density():
    """The ray through the centre, integrated finely by hand."""
    _, renderer = scene({"inv_std": 6.0, "num_samples_per_ray": 512, "min_weight": 0.0})
    ray = {"rays_o": torch.tensor([[[[2.0, 0, 0]]]]), "rays_d": torch.tensor([[[[-1.0, 0, 0]]]])}
    out = renderer(**ray, noise=torch.zeros(1, 3), text_embed=torch.zeros(1, 6), bg_color=torch.zeros(1, 3))
    a, s = 6.0, torch.linspace(-1, 1, 200001, dtype=torch.float64).abs() - SPHERE
    density = torch.where(s <= 0, a * (1 - 0.5 * torch.exp(a * s)), 0.5 * a * torch.exp(-a * s))
    assert out["opacity"].item() == pytest.approx(1 - math.exp(-float(density.mean() * 2)), abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("importance", [0, 24])
def test_a_batch_of_prompts_is_each_alone(importance):
    shape, renderer = scene({"num_samples_per_ray_importance": importance})
    give_heads_weights(shape)
    noise, text = torch.randn(3, 3), torch.randn(3, 6)
    cache = shape.generate_space_cache(noise, text)
    one = rays(2, 12)
    together = renderer(**{key: value.repeat(3, 1, 1, 1) for key, value in one.items()}, space_cache=cache)
    names = ("comp_rgb", "opacity", "depth", "comp_normal")
    for prompt in range(3):
        its = slice(prompt, prompt + 1)
        alone = renderer(**one, noise=noise[its], text_embed=text[its])
        for name in names:
            assert torch.allclose(together[name][2 * prompt : 2 * prompt + 2], alone[name], atol=1e-5), name
    assert not torch.allclose(together["comp_rgb"][:2], together["comp_rgb"][2:4], atol=0.02)
    made = renderer(**{k: v.repeat(3, 1, 1, 1) for k, v in one.items()}, noise=noise, text_embed=text)
    assert torch.equal(made["comp_rgb"], together["comp_rgb"])  # a cache is what noise and text make


@torch.no_grad()
def test_chunks_do_not_show():
    shape, whole = scene()
    _, parts = scene({"eval_chunk_size": 37})
    parts.set_geometry(shape)
    give_heads_weights(shape)
    cache = shape.generate_space_cache(torch.randn(2, 3), torch.randn(2, 6))
    batch = rays(2, 10)
    for name in ("comp_rgb", "depth"):
        assert torch.allclose(
            whole(**batch, space_cache=cache)[name], parts(**batch, space_cache=cache)[name], atol=1e-6
        )


@torch.no_grad()
def test_pruning_shows_little():
    shape, pruned = scene({"min_weight": 2e-3, "inv_std": 40.0, "num_samples_per_ray": 48})
    _, whole = scene({"min_weight": 0.0, "inv_std": 40.0, "num_samples_per_ray": 48})
    whole.set_geometry(shape)
    give_heads_weights(shape)
    cache = shape.generate_space_cache(torch.randn(2, 3), torch.randn(2, 6))
    batch = rays(2, 16)
    change = (pruned(**batch, space_cache=cache)["comp_rgb"] - whole(**batch, space_cache=cache)["comp_rgb"]).abs()
    assert float(change.max()) < 0.03 and float(change.mean()) < 2e-3


def test_backgrounds():
    _, renderer = scene(sphere_radius=0.05)
    batch = {**rays(2, 8), "noise": torch.zeros(1, 3), "text_embed": torch.zeros(1, 6)}
    plain = renderer(**batch)
    assert torch.allclose(plain["comp_rgb_bg"], torch.full((2, 8, 8, 3), 0.55))
    colors = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])
    given = renderer(**batch, bg_color=colors)
    assert torch.allclose(given["comp_rgb"][:, 0, 0], colors, atol=1e-3)
    images = torch.rand(2, 8, 8, 3)
    assert torch.equal(renderer(**batch, bg_color=images)["comp_rgb_bg"], images)
    renderer.background.train()
    torch.manual_seed(0)
    drawn = renderer(**batch)["comp_rgb_bg"]
    assert bool((drawn == drawn[:, :1, :1]).all()) and not torch.equal(drawn[0], drawn[1])  # one colour a picture
    assert float((drawn.amax(-1) - drawn.amin(-1)).max()) <= 0.08 + 1e-6


def test_gradients_of_the_distance_of_a_sphere():
    shape, renderer = scene({"eikonal_points": 600, "inv_std": 30.0}, finite_difference_eps=1e-3)
    renderer.train()
    out = renderer(**rays(1, 4), noise=torch.zeros(1, 3), text_embed=torch.zeros(1, 6))
    gradient = out["sdf_grad"]
    assert gradient.shape == (600, 3)
    # Forward differences of |p| are off by step / (2 |p|); few points are near the centre.
    assert float((gradient.norm(dim=-1) - 1).abs().median()) < 2e-3
    assert float(eikonal_loss(gradient)) < 1e-3
    cache = shape.generate_space_cache(torch.zeros(1, 3), torch.zeros(1, 6))
    points = torch.tensor([[0.3, 0.4, 0], [0, 0, -0.8]])
    found = cache.gradient(points, torch.zeros(2, dtype=torch.int64), 1e-3)
    assert torch.allclose(found, torch.tensor([[0.6, 0.8, 0], [0, 0, -1]]), atol=2e-3)


def test_eikonal_points_only_while_training():
    _, renderer = scene({"eikonal_points": 10})
    assert "sdf_grad" not in renderer(**rays(1, 2), noise=torch.zeros(1, 3), text_embed=torch.zeros(1, 6))


def test_gradient_of_a_picture_by_finite_differences():
    """d loss / d parameters along random directions, everything in double precision and nothing pruned."""
    shape, renderer = scene({
        "inv_std": 8.0, "num_samples_per_ray": 24, "min_weight": 0.0, "randomized": False, "eikonal_points": 0,
    }, layer_noise=False)  # fmt: skip
    give_heads_weights(shape)
    shape.double().train()
    renderer.double().train()
    batch = rays(2, 5, torch.float64)
    torch.manual_seed(2)
    noise, text, target = torch.randn(2, 3).double(), torch.randn(2, 6).double(), torch.rand(2, 5, 5, 3).double()
    background = torch.full((2, 3), 0.2, dtype=torch.float64)

    def loss() -> torch.Tensor:
        out = renderer(**batch, noise=noise, text_embed=text, bg_color=background)
        return (out["comp_rgb"] - target).square().mean() + 0.1 * out["opacity"].mean()

    parameters = dict(shape.named_parameters())
    gradients = dict(zip(parameters, torch.autograd.grad(loss(), list(parameters.values()), allow_unused=True)))
    checked = 0
    for name, parameter in parameters.items():
        if gradients[name] is None or "noise_strength" in name:
            continue
        direction = torch.randn_like(parameter)
        direction /= direction.norm()
        step, values = 1e-6, []
        with torch.no_grad():
            for sign in (1, -1):
                parameter += sign * step * direction
                values.append(float(loss()))
                parameter -= sign * step * direction
        difference = (values[0] - values[1]) / (2 * step)
        assert float((gradients[name] * direction).sum()) == pytest.approx(difference, rel=1e-3, abs=1e-8), name
        checked += 1
    assert checked > 25


BAD = [
    ({"inv_std": 0.0}, "renderer.inv_std: expected more than 0 at every step, got 0"),
    ({"num_samples_per_ray": 0}, "renderer.num_samples_per_ray: expected at least 1, got 0"),
    ({"num_samples_per_ray_importance": -1}, "renderer.num_samples_per_ray_importance: expected at least 0, got -1"),
    ({"min_weight": 1.0}, "renderer.min_weight: expected at least 0 and less than 1, got 1"),
    ({"radius": 1.5}, r"renderer.radius: expected geometry.radius \(1\), got 1.5"),
]


@pytest.mark.parametrize("options, message", BAD)
def test_impossible_values(options, message):
    with pytest.raises(ValueError, match=message):
        scene(options)


def test_cameras_that_no_prompt_has():
    shape, renderer = scene()
    cache = shape.generate_space_cache(torch.randn(2, 3), torch.randn(2, 6))
    with pytest.raises(ValueError, match=r"expected a multiple of 2 cameras \(prompts\), got 3"):
        renderer(**rays(3, 2), space_cache=cache)
