"""The registered renderers: what they answer for a batch of the host."""

import math

import pytest
import torch
from turboprop.gaussians.depth_normals import camera_directions, normals_from_depth
from turboprop.gaussians.geometry import GaussianSplatting

import threestudio
from tests.gaussians.scenes import batch_of, one_ball, renderer_of
from threestudio.data.cameras import look_at
from threestudio.ops.gaussian_rasterization.projection import intrinsics_from_fov


def test_images_have_the_names_and_shapes_of_other_renderers():
    renderer = renderer_of()
    out = renderer(**batch_of(size=16, width=24))
    shapes = {"comp_rgb": 3, "comp_rgb_fg": 3, "comp_rgb_bg": 3, "opacity": 1, "depth": 1}
    assert all(out[name].shape == (2, 16, 24, channels) for name, channels in shapes.items())
    assert out["viewspace_points"].shape == (2, 200, 2) and out["radii"].shape == (2, 200)
    assert out["visibility_filter"].dtype == torch.bool and "comp_normal" not in out
    assert torch.allclose(out["comp_rgb"], out["comp_rgb_fg"] + out["comp_rgb_bg"] * (1 - out["opacity"]))
    assert torch.equal(renderer.batch_forward(batch_of(size=16, width=24))["comp_rgb"], out["comp_rgb"])
    renderer.eval()
    assert renderer(**batch_of(16))["comp_normal"].shape == (2, 16, 16, 3)


def test_an_opaque_ball():
    renderer = renderer_of(geometry=one_ball()).eval()
    out = renderer(**batch_of(size=25))
    middle = {name: value[0, 12, 12] for name, value in out.items() if value.dim() == 4}
    assert middle["opacity"].item() == pytest.approx(0.99, abs=1e-3)
    assert middle["comp_rgb"].tolist() == pytest.approx([0.6, 0.2, 0.1], abs=0.02)
    assert middle["depth"].item() / middle["opacity"].item() == pytest.approx(2.5, abs=1e-3)
    assert out["comp_rgb"][0, 0, 0].tolist() == pytest.approx([1.0, 1.0, 1.0], abs=0.01)


def test_depth_is_along_the_ray():
    """A wall of Gaussians at distance 2: towards the corners the ray is longer, the axis is not."""
    y, z = torch.meshgrid(*[torch.linspace(-1.5, 1.5, 40)] * 2, indexing="ij")
    geometry = GaussianSplatting({"init_num_pts": 1600})
    with torch.no_grad():
        geometry.means.copy_(torch.stack([torch.full((1600,), 0.5), y.reshape(-1), z.reshape(-1)], 1))
        geometry.log_scales.fill_(math.log(0.08))
        geometry.opacity_logits.fill_(5.0)
    batch = batch_of(size=21, count=1)
    out = renderer_of(geometry=geometry).eval()(**batch)
    depth = (out["depth"] / out["opacity"])[0, ..., 0]
    length = batch["rays_d"].norm(dim=-1)[0]
    assert torch.allclose(depth, 2.0 * length, rtol=1e-3)
    normal = out["normal"][0, 3:-3, 3:-3]
    assert torch.allclose(normal, torch.tensor([1.0, 0, 0]).expand_as(normal), atol=0.02)


def test_normals_of_a_tilted_plane():
    intrinsics = intrinsics_from_fov(torch.tensor([0.8]), 12, 16)
    directions = camera_directions(intrinsics, 12, 16)
    normal = torch.nn.functional.normalize(torch.tensor([0.3, -0.2, 1.0]), dim=0)
    depth = -2.0 / (directions @ normal)  # the plane n . p = -2, of which the camera sees the front
    c2w = look_at(torch.tensor([[1.0, 2.0, 1.0]]), torch.zeros(1, 3), torch.tensor([[0.0, 0, 1]]))
    found = normals_from_depth(depth[..., None], directions, c2w)
    assert torch.allclose(found, (c2w[0, :3, :3] @ normal).expand_as(found), atol=1e-4)


def test_backgrounds():
    batch = batch_of(count=1)
    empty = lambda out: out["comp_rgb_bg"][0, 0, 0].tolist()  # noqa: E731
    own = renderer_of(cfg={"back_ground_color": [0.2, 0.4, 0.6]})
    assert empty(own(**batch)) == pytest.approx([0.2, 0.4, 0.6])
    inverted = renderer_of(cfg={"back_ground_color": [0.2, 0.4, 0.6], "invert_bg_prob": 0.0})
    assert empty(inverted(**batch)) == pytest.approx([0.8, 0.6, 0.4])
    assert empty(inverted.eval()(**batch)) == pytest.approx([0.2, 0.4, 0.6])
    assert empty(own(**batch, bg_color=torch.tensor([[0.0, 1.0, 0.5]]))) == [0.0, 1.0, 0.5]
    module = renderer_of("diff-gaussian-rasterizer-background", background="neural-environment-map-background")
    out = module(**batch)
    unit = torch.nn.functional.normalize(batch["rays_d"], dim=-1)
    assert torch.equal(out["comp_rgb_bg"], module.background(dirs=unit))
    out["comp_rgb"].sum().backward()
    assert all(p.grad is not None for p in module.background.parameters())


def test_training_views_are_taken_once_and_carry_gradients():
    renderer = renderer_of()
    out = renderer(**batch_of())
    out["comp_rgb"].square().mean().backward()
    (views,) = renderer.take_training_views()
    assert views.means2d.grad is out["viewspace_points"].grad and views.means2d.grad.abs().sum() > 0
    assert (views.height, views.width) == (24, 24) and renderer.take_training_views() == []
    renderer(**batch_of())
    renderer.do_update_step(0, 1)
    assert renderer.take_training_views() == []
    renderer.eval()(**batch_of())
    assert renderer.take_training_views() == []


def test_learned_normals_and_normals_while_training():
    geometry = one_ball(pred_normal=True)
    with torch.no_grad():
        geometry.normals.copy_(torch.tensor([[0.0, 0.0, 2.0]]))
    out = renderer_of("diff-gaussian-rasterizer-advanced", geometry)(**batch_of(size=9))
    assert torch.allclose(out["normal"][0, 4, 4], torch.tensor([0.0, 0, 1]), atol=1e-4)
    out["normal"][0, 4, 4, 0].backward()
    assert geometry.normals.grad.abs().sum() > 0
    depth_normal = renderer_of("diff-gaussian-rasterizer-advanced", one_ball())(**batch_of(size=9))["comp_normal"]
    assert depth_normal.requires_grad and depth_normal.shape == (2, 9, 9, 3)


def test_shading_lights_the_side_of_the_lamp():
    """A ball of many small Gaussians, lit from above: its upper half is brighter."""
    geometry = GaussianSplatting(
        {"init_num_pts": 3000, "shape_init": "sphere", "pc_init_radius": 0.6, "opacity_init": 0.95}
    )
    renderer = renderer_of(
        "diff-gaussian-rasterizer-shading", geometry, material="gaussian-diffuse-with-point-light-material"
    ).eval()
    batch = {**batch_of(size=32, count=1), "light_positions": torch.tensor([[1.5, 0.0, 3.0]])}
    out = renderer(**batch)
    column = out["comp_rgb_fg"][0, :, 16].mean(-1)
    assert column[8:14].mean() > 2 * column[18:24].mean() > 0
    assert out["comp_albedo"].shape == (1, 32, 32, 3)


@pytest.mark.parametrize("name", ["depth", "comp_normal"])
@pytest.mark.parametrize("solid", [False, True])
def test_with_shading_depth_and_normals_pull_at_opaque_pixels_alone(name, solid):
    geometry = one_ball(init_num_pts=2)
    with torch.no_grad():
        geometry.opacity_logits.fill_(3.0 if solid else 1.0)  # both together 0.998, and 0.93
    renderer = renderer_of(
        "diff-gaussian-rasterizer-shading", geometry, material="gaussian-diffuse-with-point-light-material"
    )
    out = renderer(**batch_of(size=9, count=1))
    assert bool((out["opacity"] > 0.99).any()) == solid
    gradients = torch.autograd.grad(out[name][0, 4, 4].sum(), [geometry.means, geometry.log_scales], allow_unused=True)
    assert any(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients) == solid


@pytest.mark.parametrize(
    "cfg, message",
    [
        ({"backend": "cuda"}, "renderer.backend: expected one of"),
        ({"back_ground_color": [1.0, 1.0]}, "back_ground_color: expected 3 values"),
        ({"invert_bg_prob": 1.5}, "invert_bg_prob: expected between 0 and 1"),
    ],
)
def test_wrong_configs_are_said(cfg, message):
    with pytest.raises(ValueError, match=message):
        renderer_of(cfg=cfg)


def test_it_draws_gaussians_only():
    volume = threestudio.find("implicit-volume")(
        {"pos_encoding_config": {"otype": "ProgressiveBandFrequency", "n_frequencies": 2}}
    )
    with pytest.raises(ValueError, match="set system.geometry_type=gaussian-splatting"):
        renderer_of(geometry=volume)


@pytest.mark.parametrize("smoothing, closed", [(0.0, False), (0.012, True)])
def test_smoothing_closes_the_gaps_that_a_larger_picture_shows(smoothing, closed):
    """A wall of specks, one in each pixel of a picture of 64, is opaque there; at 256 it is a sieve without it."""
    pixel = 2 * 2.5 * math.tan(math.radians(45) / 2) / 64  # world units, at the wall
    places = torch.arange(-12, 13) * pixel
    geometry = GaussianSplatting({"init_num_pts": 625, "smoothing": smoothing})
    with torch.no_grad():
        geometry.means.copy_(torch.stack(torch.meshgrid(torch.zeros(1), places, places, indexing="ij"), -1).view(-1, 3))
        geometry.log_scales.fill_(math.log(0.002))
        geometry.opacity_logits.fill_(6.0)
        renderer = renderer_of(geometry=geometry)
        lowest = {}
        for size in (64, 256):
            opacity = renderer(**batch_of(size, 1))["opacity"][0, :, :, 0]
            lowest[size] = opacity[size * 3 // 8 : size * 5 // 8, size * 3 // 8 : size * 5 // 8].min().item()
    assert lowest[64] > 0.8
    assert (lowest[256] > 0.5) if closed else (lowest[256] < 0.2)
