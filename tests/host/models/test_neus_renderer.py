"""The NeuS renderer against a ball, whose silhouette, depth and normals are known."""

import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import threestudio
from threestudio.models.geometry.base import BaseImplicitGeometry
from threestudio.models.renderers.surface_density import annealed_cosine, neus_alpha, volsdf_density
from threestudio.ops.volume_rendering import render_weight_from_alpha
from threestudio.utils.errors import UserError

RADIUS, DISTANCE, FOVY = 0.5, 2.5, 0.6
SHARP = math.log(400) / 10  # v for an inverse standard deviation of 400
VARIANCE = "variance._inv_std"  # as checkpoints of threestudio name it


class Ball(BaseImplicitGeometry):
    """The exact distance to a ball, of a learned radius."""

    def configure(self):
        super().configure()
        self.size = nn.Parameter(torch.tensor(RADIUS))

    def forward_sdf(self, points):
        return points.norm(dim=-1, keepdim=True) - self.size

    def forward(self, points, output_normal=False):
        normal = F.normalize(points, dim=-1)
        return {
            "sdf": self.forward_sdf(points),
            "features": 0.5 * normal,
            "normal": normal,
            "shading_normal": normal,
            "sdf_grad": normal,
        }


def renderer(**config):
    config = {"num_samples_per_ray": 256, "learned_variance_init": SHARP, "randomized": False, **config}
    parts = {
        "geometry": Ball({}),
        "material": threestudio.find("no-material")({"color_activation": "none"}),
        "background": threestudio.find("solid-color-background")({"color": [0.0, 0.0, 1.0]}),
    }
    made = threestudio.find("neus-volume-renderer")(config, **parts)
    made.held_parts = list(parts.values())
    if config.get("estimator") != "importance":
        for step in range(0, 256, 16):  # finds the occupied cells
            made.do_update_step(0, step)
    return made.eval()


def rays(size=33):
    """A camera on +x that looks at the origin."""
    x = (torch.arange(size) + 0.5 - size / 2) / (size / 2) * math.tan(FOVY / 2)
    up, left = torch.meshgrid(-x, x, indexing="ij")
    directions = F.normalize(torch.stack([-torch.ones_like(up), left, up], -1), dim=-1)[None]
    return {
        "rays_o": torch.tensor([DISTANCE, 0.0, 0.0]).expand(1, size, size, 3),
        "rays_d": directions,
        "light_positions": torch.tensor([[DISTANCE, 0.0, 0.0]]),
    }


def truth(batch, margin):
    """Exact hit [H, W], distance of the hit (NaN where there is none) and normal [H, W, 3]."""
    o, d = batch["rays_o"][0], batch["rays_d"][0]
    middle = -(o * d).sum(-1)
    nearest_squared = o.square().sum(-1) - middle**2
    depth = middle - (RADIUS**2 - nearest_squared).sqrt()
    clear = (nearest_squared.sqrt() - RADIUS).abs() > margin  # pixels that the silhouette does not cross
    return nearest_squared < RADIUS**2, depth, (o + d * depth[..., None]) / RADIUS, clear


MODES = [
    {},
    {"use_volsdf": True},
    {"use_volsdf": True, "estimator": "importance", "num_samples_per_ray_importance": 96},
]


@pytest.mark.parametrize("mode", MODES)
def test_a_ball_has_its_silhouette_depth_and_normals(mode):
    batch = rays()
    with torch.no_grad():
        out = renderer(**mode)(**batch)
    # VolSDF's surface is 1 / 80 thick at least, so that its silhouette is softer.
    hit, depth, normal, clear = truth(batch, margin=0.08 if mode else 0.03)
    soft = 0.04  # grazing rays lose what samples of opacity < 0.01 would have added
    torch.testing.assert_close(out["opacity"][0, ..., 0][clear], hit[clear].float(), atol=soft, rtol=0)
    inside = hit & clear
    seen = (out["depth"] / out["opacity"].clamp(min=1e-3))[0, ..., 0]
    torch.testing.assert_close(seen[inside], depth[inside], atol=0.03, rtol=0)
    normals = out["comp_normal"][0] * 2 - 1
    assert F.cosine_similarity(normals[inside], normal[inside], dim=-1).min() > 0.99
    torch.testing.assert_close(
        out["comp_rgb"][0][~hit & clear], torch.tensor([0.0, 0, 1]).expand((~hit & clear).sum(), 3), atol=soft, rtol=0
    )


def test_weights_are_unbiased():
    """NeuS's claim (section 3.1): the weight is greatest where the ray meets the surface, even a thick one."""
    t = torch.linspace(0, 2, 2001)
    middle, length = ((t[1:] + t[:-1]) / 2)[:, None], (t[1:] - t[:-1])[:, None]
    cosine = torch.full_like(middle, -0.6)
    alpha = neus_alpha((middle - 1.0) * -0.6 * 1.0, cosine, length, torch.tensor(30.0))
    weights, _ = render_weight_from_alpha(alpha[:, 0], torch.zeros(2000, dtype=torch.long))
    assert middle[weights.argmax(), 0] == pytest.approx(1.0, abs=0.002)
    # The intervals telescope: what is left after them is cdf(end) / cdf(start) of the whole ray.
    left = torch.sigmoid(torch.tensor(-0.6 * 30)) / torch.sigmoid(torch.tensor(0.6 * 30))
    assert 1 - weights.sum().item() == pytest.approx(left.item(), abs=1e-5)


def test_opacity_is_finite_deep_inside():
    sdf = torch.tensor([[-50.0], [50.0]], requires_grad=True)
    alpha = neus_alpha(sdf, torch.full_like(sdf, -1.0), torch.full_like(sdf, 0.1), torch.tensor(1e4))
    alpha.sum().backward()
    torch.testing.assert_close(alpha.detach(), torch.tensor([[1.0], [0.0]]))
    assert torch.isfinite(sdf.grad).all()
    # A ray that leaves the surface is not seen.
    assert (neus_alpha(sdf, torch.zeros_like(sdf), torch.ones_like(sdf), torch.tensor(10.0)) == 0).all()


def test_annealed_cosine():
    cosine = torch.tensor([-1.0, 0.0, 1.0])
    torch.testing.assert_close(annealed_cosine(cosine, 1.0), torch.tensor([-1.0, 0.0, 0.0]))
    torch.testing.assert_close(annealed_cosine(cosine, 0.0), torch.tensor([-1.0, -0.5, 0.0]))
    made = renderer(cos_anneal_end_steps=10)
    made.do_update_step(0, 0)
    assert made.cos_anneal_ratio == 0.0
    made.do_update_step(0, 5)
    assert made.cos_anneal_ratio == 0.5
    made.do_update_step(0, 50)
    assert made.cos_anneal_ratio == 1.0


def test_volsdf_density_is_the_laplace_cdf():
    sdf = torch.linspace(-0.3, 0.3, 61)
    laplace = torch.distributions.Laplace(0.0, 1 / 20.0)
    torch.testing.assert_close(volsdf_density(sdf, torch.tensor(20.0)), 20.0 * laplace.cdf(-sdf))


@pytest.mark.parametrize("mode", MODES)
def test_gradients_by_finite_differences(mode):
    """d (sum of opacity) / d radius; each sample stays where it is."""
    made = renderer(learned_variance_init=0.25, grid_prune=False, prune_alpha_threshold=False, **mode).train()
    size, variance = made.geometry.size, dict(made.named_parameters())[VARIANCE]
    batch = rays(9)

    def total(offset):
        with torch.no_grad():
            size.add_(offset)
            value = made(**batch)["opacity"].double().sum().item()
            size.sub_(offset)
        return value

    made(**batch)["opacity"].sum().backward()
    if "estimator" not in mode:  # importance samples move with the radius
        assert size.grad.item() == pytest.approx((total(1e-3) - total(-1e-3)) / 2e-3, rel=0.01)
    assert size.grad > 0 and torch.isfinite(variance.grad) and variance.grad != 0


def test_training_output_and_pruning():
    torch.manual_seed(0)  # jitter
    batch = rays(9)
    made = renderer().train()
    out = made(**batch)
    n = out["weights"].shape[0]
    assert 0 < n < 9 * 9 * 256 / 8  # a shell of the ball
    for key, width in (
        ("sdf", 1),
        ("sdf_grad", 3),
        ("normal", 3),
        ("t_dirs", 3),
        ("points", 3),
        ("t_intervals", 1),
        ("features", 3),
    ):
        assert out[key].shape == (n, width), key
    assert "z_variance" not in out and "comp_normal" not in out
    assert out["inv_std"].item() == pytest.approx(400, rel=1e-4)
    pruned, whole = out["opacity"], renderer(prune_alpha_threshold=False, grid_prune=False).train()(**batch)["opacity"]
    torch.testing.assert_close(pruned, whole, atol=0.04, rtol=0)


def test_the_variance_is_in_the_checkpoint():
    made = renderer()
    assert VARIANCE in made.state_dict() and "estimator.occs" in made.state_dict()
    assert not any(key.startswith("geometry") for key in made.state_dict())


@pytest.mark.parametrize(
    "config, message",
    [
        ({"estimator": "importance"}, "use_volsdf=true"),
        ({"estimator": "proposal"}, "occgrid or importance"),
        ({"num_samples_per_ray": 0}, "num_samples_per_ray"),
        ({"cos_anneal_end_steps": -1}, "cos_anneal_end_steps"),
        ({"learned_variance": 0.3}, "learned_variance_init"),
    ],
)
def test_bad_config(config, message):
    with pytest.raises(UserError, match=message):
        renderer(**config)
