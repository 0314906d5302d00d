"""Guidances by a novel-view model: the same methods as for text, asked about the picture and the camera."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from turboprop.distillation.methods import METHODS
from turboprop.distillation.weighting import weight
from turboprop.novelview.teacher import NovelViewTeacher

import threestudio
from tests.novelview.guidance_calls import CAMERAS, FIXED, call, expected_gradient, picture_on_white
from tests.tiny_pictures import ball_pixels, save_posed
from threestudio.data.reference_views import ReferenceViews, orbit_camera
from threestudio.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture()
def built(tiny_zero123_folder, ball_picture):
    """A registered guidance with the tiny model and the ball."""

    def build(name="zero123-dino-guidance", **changes):
        config = {
            "pretrained_model_name_or_path": str(tiny_zero123_folder),
            "cond_image_path": str(ball_picture),
            "cond_elevation_deg": 5.0,
            "cond_azimuth_deg": 10.0,
            "cond_camera_distance": 2.7,
        }
        return threestudio.find(name)({**config, **changes})

    return build


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_is_the_pure_function_with_the_teachers_condition(
    built, method, tiny_zero123_folder, ball_picture
):
    guidance = built(method=method, **FIXED, guidance_scale=4.0)
    output, rgb = call(guidance)
    gradient = expected_gradient(tiny_zero123_folder, picture_on_white(ball_picture), rgb.detach(), method, 4.0)
    torch.testing.assert_close(output["grad_norm"], gradient.norm(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(output[f"loss_{method}"], 0.5 * gradient.square().sum() / 2, rtol=1e-4, atol=1e-6)
    output[f"loss_{method}"].backward()
    assert rgb.grad.isfinite().all() and (method in ("asd", "csd") or rgb.grad.abs().max() > 0)
    assert f"loss_{method}" in {f"loss_{name}" for name in type(guidance).returned_losses()}


def test_it_depends_on_the_camera_and_on_the_picture(built):
    guidance = built(**FIXED)
    one = call(guidance)[0]["grad_norm"]
    assert torch.equal(call(guidance)[0]["grad_norm"], one)
    assert not torch.equal(call(guidance, azimuth=torch.tensor([90.0, 200.0]))[0]["grad_norm"], one)
    other = built(**FIXED, cond_azimuth_deg=100.0)
    assert not torch.equal(call(other)[0]["grad_norm"], one)


def test_a_whole_turn_of_scene_and_picture_changes_nothing(built):
    one = call(built(**FIXED))[0]["grad_norm"]
    turned = built(**FIXED, cond_azimuth_deg=10.0 + 77.0)
    torch.testing.assert_close(call(turned, azimuth=CAMERAS["azimuth"] + 77.0)[0]["grad_norm"], one, rtol=1e-4, atol=0)


def test_systems_for_prompts_may_ask_it(built):
    guidance = built(**FIXED)
    torch.manual_seed(1)
    output = guidance(
        torch.rand(2, 12, 12, 3, generator=torch.Generator().manual_seed(0)), object(), **CAMERAS, rgb_as_latents=False
    )
    torch.testing.assert_close(output["loss_sds"], call(guidance)[0]["loss_sds"])


def test_pictures_of_what_it_sees(built):
    seen = call(built(max_items_eval=1), guidance_eval=True)[0]["eval"]
    assert seen["bs"] == 1 and seen["imgs_final"].shape == (1, 16, 16, 3)
    assert 0 <= seen["imgs_final"].min() and seen["imgs_final"].max() <= 1


# ---------------------------------------------------------------------------- upstream's names


def test_zero123_is_sds_in_threestudios_form(built, tiny_zero123_folder, ball_picture):
    """eps_u + s (eps_c - eps_u) - eps, weighed by 1 - abar."""
    guidance = built("zero123-guidance", **FIXED, pretrained_config="x.yaml", vram_O=False)
    assert guidance.cfg.guidance_scale == 5.0 and guidance.cfg.half_precision_weights is False
    output, rgb = call(guidance)
    gradient = expected_gradient(tiny_zero123_folder, picture_on_white(ball_picture), rgb.detach(), "sds", 5.0)
    torch.testing.assert_close(output["grad_norm"], gradient.norm(), rtol=1e-4, atol=1e-6)


def test_stable_zero123s_fourth_number_is_the_pictures_polar_angle(built, tiny_zero123_folder, ball_picture):
    output, rgb = call(built("stable-zero123-guidance", **FIXED))
    arguments = (tiny_zero123_folder, picture_on_white(ball_picture), rgb.detach(), "sds", 5.0)
    stable = expected_gradient(*arguments, fourth="input_polar_angle")
    torch.testing.assert_close(output["grad_norm"], stable.norm(), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(stable.norm(), expected_gradient(*arguments).norm())


@pytest.mark.parametrize("strategy", ["dreamfusion", "uniform", "fantasia3d"])
def test_unified_has_other_names_and_weights(built, strategy):
    """One timestep for all samples; w is 1 - sqrt(abar) and the like."""
    plain = call(built(**FIXED, weighting_strategy="uniform", shared_timesteps=True, guidance_scale=5.0))[0]
    guidance = built("zero123-unified-guidance", **FIXED, weighting_strategy=strategy)
    output, _ = call(guidance)
    signal = guidance.guidance.teacher.alphas_cumprod[500].sqrt().item()
    factor = {"dreamfusion": 1 - signal, "uniform": 1.0, "fantasia3d": signal**0.5 * (1 - signal)}[strategy]
    torch.testing.assert_close(output["grad_norm"], factor * plain["grad_norm"], rtol=1e-4, atol=1e-6)
    assert {key for key in output if key.startswith("loss_")} == {"loss_sd"}
    assert not list(guidance.parameters())
    name = "uniform" if strategy == "uniform" else f"unified_{strategy}"
    assert weight(guidance.guidance.teacher.alphas_cumprod, torch.tensor([500]), name).item() == pytest.approx(
        factor, rel=1e-5
    )


def test_unified_takes_the_schedules_of_upstreams_configs(built):
    guidance = built(
        "zero123-unified-guidance",
        min_step_percent=[0, 0.4, 0.2, 200],
        max_step_percent=[0, 0.85, 0.5, 200],
        grad_clip=[0, 1e-3, 1e-4, 100],
    )
    for step, low, high in ((0, 400, 850), (100, 300, 675), (500, 200, 500)):
        guidance.do_update_step(0, step)
        output, _ = call(guidance)
        assert (output["min_step"], output["max_step"]) == (low, high)


# ---------------------------------------------------------------------------- several pictures


def test_a_folder_has_the_field_of_view_that_is_given(built, tmp_path):
    """A camera that looks 30 degrees beside the object sees it in a field of view of 70 degrees, not of 49."""
    save_posed(tmp_path, [ball_pixels()], [10.0], [0.0])
    cosine, sine = math.cos(math.radians(30)), math.sin(math.radians(30))
    turned = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]]) @ np.load(tmp_path / "000.npy")
    np.save(tmp_path / "000.npy", turned)
    with pytest.raises(UserError, match="does not see the world's origin"):
        built(cond_image_path=str(tmp_path))
    assert len(built(cond_image_path=str(tmp_path), cond_fovy_deg=70.0).input_views.views) == 1


def test_each_camera_goes_by_the_nearest_picture(built, tiny_zero123_folder):
    """A batch over three pictures is the same as each sample by its own."""
    teacher = NovelViewTeacher.from_pretrained(str(tiny_zero123_folder))
    generator = torch.Generator().manual_seed(5)
    pictures = tuple(
        torch.cat([torch.rand(16, 16, 3, generator=generator), torch.ones(16, 16, 1)], -1) for _ in range(3)
    )
    azimuths, elevations = (0.0, 120.0, 240.0), (5.0, 15.0, 25.0)
    c2w = torch.cat([orbit_camera(e, a, 2.7) for e, a in zip(elevations, azimuths)])
    views = ReferenceViews(pictures, c2w, torch.full((3,), 0.7))
    guidance = threestudio.find("zero123-dino-guidance")({**FIXED}, teacher=teacher, views=views)
    cameras = (torch.tensor([10.0, -20.0]), torch.tensor([230.0, 20.0]), torch.tensor([2.7, 2.7]))
    from turboprop.teachers.contract import Cameras

    asked = guidance.conditions(None, Cameras(*cameras))
    for sample, picture in ((0, 2), (1, 0)):
        image = pictures[picture][..., :3].permute(2, 0, 1)[None]
        own = teacher.condition(
            image, elevations[picture], azimuths[picture], 2.7, *(c[sample : sample + 1] for c in cameras)
        )
        torch.testing.assert_close(asked.positive.tokens[sample : sample + 1], own.tokens, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(asked.positive.latents[sample : sample + 1], own.latents, rtol=1e-4, atol=1e-5)
    assert asked.unconditional.tokens.abs().max() == 0


@pytest.mark.parametrize("config", ["zero123", "stable-zero123"])
@pytest.mark.parametrize("name", ["zero123-dino-guidance", "zero123-dino-vsd-guidance", "zero123-guidance"])
def test_upstreams_configs_may_name_another_guidance(built, config, name, tiny_zero123_folder, tmp_path):
    """By guidance_type alone: all keys are known, and the picture is the one that the data shows."""
    given = OmegaConf.load(ROOT / "configs" / f"{config}.yaml").system.guidance
    resolved = {key: given[key] for key in given if not OmegaConf.is_interpolation(given, key)}
    Image.fromarray(ball_pixels(radius=5.0, middle=(30.0, 30.0))).save(tmp_path / "small.png")
    data = threestudio.find("single-image-datamodule")({"image_path": str(tmp_path / "small.png")}).reference_views()
    there = {"pretrained_model_name_or_path": str(tiny_zero123_folder), "cond_image_path": str(tmp_path / "small.png")}
    guidance = built(name, **{**resolved, "vram_O": True, **there})
    assert torch.equal(guidance.input_views.views.pictures[0], data.pictures[0])


# ---------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("zero123-dino-guidance", {"cond_image_path": ""}, "cond_image_path: the path of a picture"),
        (
            "zero123-guidance",
            {"cond_image_path": "gone.png"},
            "^cond_image_path: no picture at gone.png",
        ),
        ("zero123-dino-guidance", {"framing": {"mode": "x"}}, "^framing.mode: expected one of"),
        ("zero123-dino-guidance", {"method": "vsd"}, "set guidance_type=zero123-dino-vsd-guidance"),
        ("zero123-dino-guidance", {"cond_elevation": 3.0}, "unknown key 'cond_elevation'.*nearest: cond_elevation_deg"),
        ("zero123-unified-guidance", {"guidance_type": "sdd"}, "guidance_type: expected one of sds, vsd, got 'sdd'"),
        (
            "zero123-unified-guidance",
            {"return_rgb_1step_orig": True},
            "return_rgb_1step_orig: not supported; expected false, got true",
        ),
        (
            "zero123-unified-guidance",
            {"weighting_strategy": "sds"},
            "weighting_strategy: expected one of dreamfusion, uniform, fantasia3d",
        ),
    ],
)
def test_bad_configs_are_named(built, name, changes, message):
    with pytest.raises(ValueError, match=message):
        built(name, **changes)


def test_a_text_to_image_model_is_no_novel_view_model(built, tiny_sd_folder):
    with pytest.raises(ValueError, match="is no novel-view model"):
        built(pretrained_model_name_or_path=str(tiny_sd_folder))


def test_an_encoder_whose_width_does_not_fit_is_named(tiny_zero123_folder, tmp_path, built):
    """The projection of another encoder: its width stands in the message."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "other"
    shutil.copytree(tiny_zero123_folder, folder)
    file = folder / "cc_projection" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({key: value[..., :-3].clone() if value.ndim == 2 else value for key, value in weights.items()}, file)
    with pytest.raises(ValueError, match=r"has shape \[16, 17\], expected \[16, 20\]: the encoder's width"):
        built(pretrained_model_name_or_path=str(folder))


def test_the_angle_of_a_picture_is_the_datas():
    """The place of the picture is the same for the data and for the guidance."""
    views = ReferenceViews((torch.zeros(2, 2, 4),), orbit_camera(-35.0, 170.0, 1.9), torch.tensor([0.5]))
    assert views.elevation.item() == pytest.approx(-35.0, abs=1e-4)
    assert views.azimuth.item() == pytest.approx(170.0, abs=1e-4)
    assert views.distances.item() == pytest.approx(1.9)
    assert math.isclose(views.c2w[0, 2, 3].item(), 1.9 * math.sin(math.radians(-35.0)), rel_tol=1e-5)
