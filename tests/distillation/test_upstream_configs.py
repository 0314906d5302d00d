"""The guidance blocks of threestudio's configs, as configs/ has them, at the first and the last step of their runs."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from turboprop.distillation.weighting import weight
from turboprop.teachers.contract import Cameras

import threestudio

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LOSSES = {
    "dreamfusion-sd": {"loss_sds"},
    "dreamfusion-if": {"loss_sds"},
    "magic3d-coarse-sd": {"loss_sds"},
    "magic3d-refine-sd": {"loss_sds"},
    "textmesh-if": {"loss_sds"},
    "prolificdreamer": {"loss_vsd", "loss_lora"},
    "prolificdreamer-geometry": {"loss_sds"},
    "prolificdreamer-texture": {"loss_vsd", "loss_lora"},
    "hifa": {"loss_sds", "loss_sds_img"},
    "fantasia3d": {"loss_sds"},
    "fantasia3d-texture": {"loss_sds"},
    "latentnerf": {"loss_sds"},
    "sjc": {"loss_sds"},
    "sdi": {"loss_sdi"},
}


@pytest.fixture()
def built(tiny_sd_folder, tiny_sd_v_folder, tiny_if_folder, text_cache):
    """The guidance and the prompts of a config, with small models."""

    def build(name: str, **changes):
        system = OmegaConf.load(CONFIGS / f"{name}.yaml").system
        folder = str(tiny_if_folder if "deep-floyd" in system.guidance_type else tiny_sd_folder)
        guidance = OmegaConf.to_container(system.guidance)
        guidance["pretrained_model_name_or_path"] = folder
        if "pretrained_model_name_or_path_lora" in guidance:
            guidance["pretrained_model_name_or_path_lora"] = str(tiny_sd_v_folder)
        prompt = OmegaConf.to_container(system.prompt_processor)
        prompt.update(prompt="a red chair", pretrained_model_name_or_path=folder)
        utils = threestudio.find(system.prompt_processor_type)(prompt)()
        return threestudio.find(system.guidance_type)({**guidance, **changes}), utils

    return build


def call(guidance, utils, rgb=None, seed=1, **kwargs):
    torch.manual_seed(0)
    rgb = torch.rand(1, 12, 12, 3, requires_grad=True) if rgb is None else rgb
    batch = {
        "elevation": torch.tensor([10.0]),
        "azimuth": torch.tensor([100.0]),
        "camera_distances": torch.ones(1),
        "mvp_mtx": torch.randn(1, 4, 4),
        "c2w": torch.randn(1, 4, 4),
        "light_positions": torch.ones(1, 3),
    }
    torch.manual_seed(seed)
    return guidance(rgb, utils, **batch, **kwargs), rgb


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_config_guides(built, name):
    guidance, utils = built(name)
    steps = OmegaConf.load(CONFIGS / f"{name}.yaml").trainer.max_steps
    for step in (0, steps):
        guidance.do_update_step(0, step)
        output, rgb = call(guidance, utils, rgb_as_latents=False)
        assert {key for key in output if key.startswith("loss_")} == LOSSES[name]
        declared = {f"loss_{loss}" for loss in type(guidance).returned_losses()}
        assert LOSSES[name] <= declared
        assert all(torch.as_tensor(value).numel() == 1 for value in output.values())
        sum(output[key] for key in LOSSES[name]).backward()
        assert rgb.grad.isfinite().all() and rgb.grad.abs().max() > 0
        assert {"grad_norm", "min_step", "max_step"} <= set(output)


@pytest.mark.parametrize("name", ["latentnerf", "fantasia3d", "sjc"])
def test_rendered_latents(built, name):
    guidance, utils = built(name)
    latents = torch.rand(1, 6, 6, 4, requires_grad=True)
    output, _ = call(guidance, utils, latents, rgb_as_latents=True)
    output["loss_sds"].backward()
    assert latents.grad.abs().max() > 0
    with pytest.raises(ValueError, match="rgb_as_latents: expected latents of 4 channels, got 3"):
        call(guidance, utils, rgb_as_latents=True)


def test_pixel_space_has_no_latents(built):
    guidance, utils = built("dreamfusion-if")
    with pytest.raises(ValueError, match="rgb_as_latents: deep-floyd-guidance has no latents"):
        call(guidance, utils, rgb_as_latents=True)


def test_pixel_space_gradient_is_sds_of_the_resized_picture(built):
    """d loss / d image in [-1, 1] is w (eps_hat - eps); upstream's guidance scale counts one less."""
    guidance, utils = built("dreamfusion-if", min_step_percent=0.5, max_step_percent=0.5)
    rgb = torch.rand(1, 8, 8, 3, requires_grad=True)
    output, _ = call(guidance, utils, rgb)
    (gradient,) = torch.autograd.grad(output["loss_sds"], rgb)
    torch.manual_seed(1)
    guidance.schedule.draw(1)
    images = rgb.detach().permute(0, 3, 1, 2) * 2 - 1
    noise, timesteps = torch.randn_like(images), torch.tensor([500])
    asked = guidance.conditions(utils, Cameras(torch.tensor([10.0]), torch.tensor([100.0]), torch.ones(1)))
    noisy = guidance.teacher.add_noise(images, noise, timesteps)
    positive = guidance.teacher.predict_noise(noisy, timesteps, asked.positive)
    unconditional = guidance.teacher.predict_noise(noisy, timesteps, asked.unconditional)
    epsilon = unconditional + 21.0 * (positive - unconditional)
    expected = 2 * weight(guidance.teacher.alphas_cumprod, timesteps, "sds") * (epsilon - noise)
    torch.testing.assert_close(gradient, expected.permute(0, 2, 3, 1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("strategy", ["sds", "uniform", "fantasia3d"])
def test_the_strategy_is_a_factor_of_the_gradient(built, strategy):
    fixed = {"min_step_percent": 0.6, "max_step_percent": 0.6}
    uniform, utils = built("magic3d-coarse-sd", **fixed)
    plain = call(uniform, utils)[0]["grad_norm"]
    guidance, _ = built("magic3d-coarse-sd", **fixed, weighting_strategy=strategy)
    factor = weight(guidance.teacher.alphas_cumprod, torch.tensor([600]), strategy).item()
    torch.testing.assert_close(call(guidance, utils)[0]["grad_norm"], factor * plain, rtol=1e-4, atol=0)


def test_sjc_is_unweighted_and_without_variance_reduction_has_the_score_alone(built):
    guidance, utils = built("sjc")
    reduced = call(guidance, utils)[0]["grad_norm"]
    guidance.do_update_step(0, 0)
    whole, _ = built("sjc", var_red=False)
    assert not torch.equal(call(whole, utils)[0]["grad_norm"], reduced)
    weighted, _ = built("sjc", weighting_strategy="fantasia3d")
    assert torch.equal(call(weighted, utils)[0]["grad_norm"], reduced)


def test_hifas_timestep_falls_as_the_root_of_progress_and_both_losses_are_clipped(built):
    guidance, utils = built("hifa", grad_clip=[0, 1e-3, 1e-4, 100])
    for step, timestep, clip in ((0, 980, 1e-3), (6250, 639, 1e-4), (25000, 300, 1e-4)):
        guidance.do_update_step(0, step)  # 0.3 + 0.68 (1 - sqrt(1/4)) is 0.63999... in floating point, as upstream
        assert guidance.schedule.min_step == guidance.schedule.max_step == timestep
        output, _ = call(guidance, utils)
        assert 0 < output["loss_sds"] <= 0.5 * 4 * 8 * 8 * clip**2 * 1.001
        assert 0 < output["loss_sds_img"] <= 0.5 * 3 * 16 * 16 * clip**2 * 1.001


def test_prolificdreamers_timesteps_are_halved_after_5000_steps(built):
    guidance, _ = built("prolificdreamer")
    seen = []
    for step in (0, 5000, 5001, 25000):
        guidance.do_update_step(0, step)
        seen.append(guidance.schedule.max_step)
    assert seen == [980, 980, 500, 500]
