"""What threestudio-3dgs trains on: first colours, lights and backgrounds by view, pictures and their losses."""

import math

import pytest
import torch
from turboprop.gaussians.geometry import GaussianSplatting
from turboprop.gaussians.losses import UPSTREAM_MULTI_VIEW_LOSSES, UPSTREAM_PICTURE_LOSSES
from turboprop.gaussians.spherical_harmonics import DC
from turboprop.gaussians.system import GaussianSplattingSystem

import threestudio
from threestudio.systems.score_distillation import ScoreDistillationSystem

from ..gaussians.scenes import batch_of, one_ball, renderer_of

MATERIAL = "gaussian-diffuse-with-point-light-material"


@pytest.mark.parametrize("shape", ["ball", "sphere"])
@pytest.mark.parametrize("clip, spread", [([0, 0.01, 0.02, 1500], 0.005), (2.0, 0.05 / DC)])
def test_first_colours_lie_inside_the_clip(shape, clip, spread):
    """MVDream's config clips colours to 0.01 at first. One that starts beyond it has no gradient until the clip has
    grown that far, which for most would be thousands of steps."""
    geometry = GaussianSplatting({"init_num_pts": 2000, "shape_init": shape, "color_clip": clip})
    assert geometry.sh_dc.abs().max().item() == pytest.approx(spread, rel=0.01)
    geometry.gaussians().sh.sum().backward()
    assert bool((geometry.sh_dc.grad == 1).all())


def lit_material(**cfg):
    torch.manual_seed(0)
    return threestudio.find(MATERIAL)({"ambient_only_steps": 10, "textureless_prob": 0.0, **cfg})


def shaded(material, views: int) -> torch.Tensor:
    """Albedo of a half, of which a lamp straight above shows half of its diffuse light: [views]."""
    albedo, normal = torch.full((views, 1, 1, 3), 0.5), torch.tensor([0.0, 0.0, 1.0]).expand(views, 1, 1, 3)
    lamp = torch.tensor([math.sqrt(3), 0.0, 1.0]).expand(views, 1, 1, 3)  # 60 degrees off the normal: a cosine of 1/2
    return material(features=albedo, positions=torch.zeros(views, 1, 1, 3), shading_normal=normal,
                    light_positions=lamp)[:, 0, 0, 0]  # fmt: skip


def test_each_view_is_lit_by_its_own_draws():
    """threestudio-3dgs shades view by view: of one step's views some are lit and others not, each by its own share.

    With a share d of diffuse light, a half of white shows (1 - d + d / 2) / 2, uniform between 1/4 and 1/2.
    """
    material = lit_material(soft_shading=True)
    material.update_step(0, 10)
    colors = shaded(material, 1000)
    plain = colors == 0.5
    assert plain.float().mean().item() == pytest.approx(0.25, abs=0.04)
    assert colors[~plain].mean().item() == pytest.approx(0.375, abs=0.01)
    assert colors[~plain].unique().numel() > 700


def test_before_the_lights_come_on_validation_shows_no_light_either():
    material = lit_material().eval()
    for step, color in ((9, 0.5), (10, 0.5 * (0.1 + 0.9 / 2))):
        material.update_step(0, step)
        assert shaded(material, 2).tolist() == pytest.approx([color] * 2)


def test_light_falls_on_colours_that_a_surface_can_have():
    """Harmonics of the largest coefficient, 2, are 0.5 + 2 * 0.282 = 1.064; lit, they count as 1."""
    material = lit_material(diffuse_prob=1.0)
    white, zeros = torch.full((1, 1, 1, 3), 1.064), torch.zeros(1, 1, 1, 3)
    up = torch.tensor([[[[0.0, 0.0, 1.0]]]])
    lit = material(features=white, positions=zeros, shading_normal=up, light_positions=up, shading="diffuse")
    assert torch.allclose(lit, torch.ones(1, 1, 1, 3))


def test_each_view_draws_its_own_background():
    """Black in half of the views, not in half of the steps: threestudio-3dgs draws as it renders each of them."""
    torch.manual_seed(0)
    renderer = renderer_of(cfg={"invert_bg_prob": 0.5})
    colors = torch.cat([renderer(**batch_of(size=4))["comp_rgb_bg"].mean(dim=(1, 2, 3))[None] for _ in range(200)])
    assert set(colors.unique().tolist()) == {0.0, 1.0}
    assert colors.mean().item() == pytest.approx(0.5, abs=0.08)
    assert (colors[:, 0] != colors[:, 1]).float().mean().item() == pytest.approx(0.5, abs=0.12)


def test_a_background_that_is_never_inverted_moves_no_other_draw():
    renderer = renderer_of()
    torch.manual_seed(3)
    renderer(**batch_of(size=4))
    after = torch.rand(())
    torch.manual_seed(3)
    torch.rand(())
    assert torch.equal(after, torch.rand(()))


def test_pictures_of_normals_stand_before_grey():
    """n / 2 of an opaque pixel above a half: then the squared difference to an empty neighbour is |n|^2 / 4, whichever
    way the normal n points, and smoothness does not turn the outline's normals."""
    renderer = renderer_of("diff-gaussian-rasterizer-shading", one_ball(pred_normal=True), material=MATERIAL)
    with torch.no_grad():
        renderer.geometry.log_scales.fill_(math.log(0.1))
        renderer.geometry.normals.copy_(torch.tensor([[0.0, 3.0, 4.0]]))
    out = renderer(**batch_of(size=17, count=1))
    for name in ("comp_normal", "comp_pred_normal"):
        assert torch.allclose(out[name][0, 0, 0], torch.full((3,), 0.5), atol=1e-4)
        middle = (out[name][0, 8, 8] - 0.5).norm().item()
        assert middle == pytest.approx(0.5 * out["opacity"][0, 8, 8].item(), rel=1e-3)


@pytest.mark.parametrize("losses", [UPSTREAM_PICTURE_LOSSES, UPSTREAM_MULTI_VIEW_LOSSES])
def test_a_wall_that_faces_the_camera_has_no_variation_of_depth(losses):
    """threestudio-3dgs's depth is along the view axis; along the rays it would grow towards the corners."""
    out = renderer_of("diff-gaussian-rasterizer-advanced", one_ball())(**batch_of(size=9, count=1))
    assert torch.allclose(out["depth"], out["comp_depth"] * (out["depth"] / out["comp_depth"].clamp(min=1e-9)))
    assert bool((out["depth"] >= out["comp_depth"]).all()) and out["depth"][0, 4, 4] == out["comp_depth"][0, 4, 4]
    wall = torch.full((1, 4, 4, 1), 2.0)
    render = {"comp_depth": wall, "depth": torch.rand(1, 4, 4, 1), "comp_normal": torch.full((1, 4, 4, 3), 0.5)}
    assert losses["depth_tv_loss"](render) == 0
    assert losses["depth_tv_loss"]({**render, "comp_depth": torch.arange(16.0).reshape(1, 4, 4, 1)}) > 0


@pytest.mark.parametrize("name", ["", "mvdream-", "zero123-"])
def test_nothing_drives_a_colour_past_white(name, monkeypatch):
    """Pictures are cut to [0, 1]: a colour beyond has no gradient, as in threestudio-3dgs."""
    rendered = torch.tensor([-0.1, 0.5, 1.06], requires_grad=True)
    for base in (ScoreDistillationSystem, GaussianSplattingSystem):
        monkeypatch.setattr(base, "forward", lambda self, batch: {"comp_rgb": rendered, "opacity": 1})
    system = threestudio.find(f"gaussian-splatting-{name}system")
    cut = system.__new__(system).forward({})
    assert cut["comp_rgb"].tolist() == pytest.approx([0.0, 0.5, 1.0]) and cut["opacity"] == 1
    cut["comp_rgb"].sum().backward()
    assert rendered.grad.tolist() == [0, 1, 0]
