"""The registered guidances, as a system calls them."""

from functools import partial

import pytest
import torch
from turboprop.distillation.step import distillation_loss, finite_gradient
from turboprop.teachers import GaussianMixtureTeacher
from turboprop.teachers.contract import Cameras

import threestudio
from threestudio.models.prompt_processors.base import PromptProcessorOutput

BATCH = 4


@pytest.fixture()
def prompt_utils(tiny_sd_folder, text_cache):
    """A processor's answer for two prompts, so for two cameras each."""

    def make(**cfg):
        keys = {
            "pretrained_model_name_or_path": str(tiny_sd_folder),
            "prompts": ["a red chair", "a blue car"],
            **cfg,
        }
        return threestudio.find("turboprop-multi-prompt-processor")(keys)(["a blue car", "a red chair"])

    return make


@pytest.fixture()
def guidance(tiny_sd_folder):
    def make(name="turboprop-asd-guidance", **cfg):
        return threestudio.find(name)({"pretrained_model_name_or_path": str(tiny_sd_folder), **cfg})

    return make


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "rgb": torch.rand(BATCH, 12, 12, 3, requires_grad=True),
        "elevation": torch.tensor([0.0, 10.0, 70.0, -10.0]),
        "azimuth": torch.tensor([0.0, 100.0, 30.0, 170.0]),
        "camera_distances": torch.ones(BATCH),
    }


def call(guidance, prompt_utils, seed=1, **kwargs):
    data = batch()
    rgb = data.pop("rgb")
    torch.manual_seed(seed)
    output = guidance(rgb, prompt_utils, **data, **kwargs)
    return output, rgb


@pytest.mark.parametrize("perp_neg", [False, True])
@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("turboprop-asd-guidance", "loss_asd"),
        ("turboprop-sds-guidance", "loss_sds"),
        ("turboprop-csd-guidance", "loss_csd"),
        ("stable-diffusion-guidance", "loss_sds"),
        ("stable-diffusion-asynchronous-score-distillation-guidance", "loss_asd"),
    ],
)
def test_one_config_runs_every_guidance(guidance, prompt_utils, name, loss, perp_neg):
    keys = {
        "guidance_scale": 7.5,
        "plus_ratio": 0.2,
        "plus_random": True,
        "grad_clip": 0.5,
        "guidance_perp_neg": -0.3,
    }
    output, rgb = call(guidance(name, **keys), prompt_utils(use_perp_neg=perp_neg), rays_o=None, height=12)
    assert {loss, "grad_norm", "nan_gradients", "min_step", "max_step"} <= set(output)
    assert all(torch.as_tensor(value).numel() == 1 for value in output.values())
    output[loss].backward()
    assert rgb.grad.isfinite().all() and rgb.grad.abs().max() > 0
    assert (output["min_step"], output["max_step"], output["nan_gradients"].item()) == (20, 980, 0)


def test_perp_neg_pushes_away_by_its_factor(guidance, prompt_utils):
    utils, data = prompt_utils(use_perp_neg=True), batch()
    cameras = (data["elevation"], data["azimuth"], data["camera_distances"])
    _, strengths = utils.get_text_embeddings_perp_neg(*cameras)
    conditions = guidance(guidance_perp_neg=-0.5).conditions(utils, Cameras(*cameras))
    negatives = conditions.negatives
    torch.testing.assert_close(negatives.weights, 0.5 * strengths)
    assert (negatives.weights < -0.1).any() and (negatives.weights <= 1e-3).all()
    assert len(conditions.positive) == len(conditions.unconditional) == BATCH
    assert len(negatives.condition) == 2 * BATCH


def test_the_method_is_one_key(guidance, prompt_utils):
    for method in ("asd", "sds", "csd", "sjc"):
        by_key, _ = call(guidance("turboprop-guidance", method=method), prompt_utils())
        assert f"loss_{method}" in by_key
    by_name, _ = call(guidance("turboprop-csd-guidance"), prompt_utils())
    by_key, _ = call(guidance("turboprop-guidance", method="csd"), prompt_utils())
    assert torch.equal(by_name["loss_csd"], by_key["loss_csd"])


def test_draws_come_from_the_global_generator(guidance, prompt_utils):
    utils, module = prompt_utils(), guidance()
    first, again, other = (call(module, utils, seed)[0]["loss_asd"] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_losss_gradient_is_the_methods_by_the_batch_size():
    values = torch.randn(3, 2, 2, 2, requires_grad=True)
    gradient = torch.randn(3, 2, 2, 2)
    loss = distillation_loss(values, gradient)
    loss.backward()
    torch.testing.assert_close(values.grad, gradient / 3)
    torch.testing.assert_close(loss, gradient.square().sum() / 6)


def test_what_is_not_finite_is_left_out_and_counted():
    gradient, count = finite_gradient(torch.tensor([1.0, float("nan"), float("inf"), -2.0, -float("inf")]))
    assert gradient.tolist() == [1.0, 0.0, 0.0, -2.0, 0.0] and count.item() == 3


def mixture_prompt(weights: list[float]) -> PromptProcessorOutput:
    """A prompt processor's answer whose embeddings are a mixture's weights."""
    positive, unconditional = torch.tensor([[weights]]), torch.tensor([[[0.5, 0.5]]])
    return PromptProcessorOutput(
        positive,
        unconditional,
        positive.expand(4, -1, -1),
        unconditional.expand(4, -1, -1),
        [],
        {},
        False,
        *[(1, 1, 1)] * 4,
    )


def mixture_guidance(**cfg):
    means = torch.tensor([0.8, -0.8]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    teacher = GaussianMixtureTeacher(means, [0.2, 0.2])
    cfg = {"view_dependent_prompting": False, "half_precision_weights": False, **cfg}
    return threestudio.find("turboprop-guidance")(cfg, teacher=teacher)


def test_any_teacher_will_do_and_its_mode_is_found():
    guidance, prompt = mixture_guidance(method="sds", guidance_scale=1.0), mixture_prompt([1.0, 0.0])
    torch.manual_seed(0)
    rgb = torch.rand(BATCH, 4, 4, 3, requires_grad=True)
    angles = torch.zeros(BATCH)
    optimizer = torch.optim.SGD([rgb], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        guidance(rgb, prompt, angles, angles, angles)["loss_sds"].backward()
        optimizer.step()
    assert (rgb - 0.9).abs().mean() < 0.1  # 0.8 in [-1, 1] is 0.9 in [0, 1]


def test_a_sample_without_a_finite_score_is_skipped_and_counted():
    """A condition of no weight at all has no density, so no score: its sample's gradient is NaN."""
    guidance = mixture_guidance(method="asd")
    prompt = mixture_prompt([1.0, 0.0])
    torch.manual_seed(0)
    rgb = torch.rand(2, 4, 4, 3, requires_grad=True)
    embeddings = prompt.get_text_embeddings(torch.zeros(2), torch.zeros(2), torch.zeros(2), False).clone()
    embeddings[1] = 0.0
    prompt.get_text_embeddings = lambda *cameras: embeddings
    output = guidance(rgb, prompt, torch.zeros(2), torch.zeros(2), torch.zeros(2))
    output["loss_asd"].backward()
    assert output["nan_gradients"].item() == 3 * 4 * 4
    assert output["loss_asd"].isfinite() and output["grad_norm"].isfinite()
    assert rgb.grad[0].abs().max() > 0 and rgb.grad[1].abs().max() == 0


def test_schedules_at_their_ends(guidance):
    module = guidance(
        min_step_percent=[0, 0.5, 0.02, 100],
        max_step_percent=[0, 0.98, 0.5, 100],
        guidance_scale=[0, 100.0, 10.0, 100],
        grad_clip=[0, 2.0, 8.0, 100],
    )
    seen = []
    for step in (0, 50, 100, 1000):
        module.do_update_step(0, step)
        now = module.schedule
        seen.append((now.min_step, now.max_step, now.guidance_scale, now.grad_clip))
    assert seen == [(500, 980, 100, 2), (260, 740, 55, 5), (20, 500, 10, 8), (20, 500, 10, 8)]


def test_the_annealed_window_is_where_timesteps_and_shifts_fall(guidance):
    module = guidance(min_step_percent=[0, 0.5, 0.02, 100], max_step_percent=[0, 0.98, 0.5, 100])
    torch.manual_seed(0)
    for step, low, high in ((0, 500, 980), (100, 20, 500)):
        module.do_update_step(0, step)
        timesteps, shifted = module.schedule.draw(4000)
        assert low <= timesteps.min() and timesteps.max() <= high
        assert (shifted - timesteps).min() >= 0 and (shifted - timesteps).max() <= 48
    timesteps, shifted = guidance(plus_random=False).schedule.draw(100)
    expected = (0.1 * (timesteps - 20)).minimum((999 - timesteps).float())
    assert torch.equal(shifted - timesteps, expected.long())
    constant = guidance(min_step_percent=0.5, max_step_percent=0.9, plus_min_step_percent=0.02)
    timesteps, shifted = constant.schedule.draw(4000)
    assert (shifted - timesteps).max() > 60  # up to 0.1 * (900 - 20)
    shared, shifted = guidance(shared_timesteps=True).schedule.draw(8)
    assert shared.unique().numel() == shifted.unique().numel() == 1


def test_hifas_single_annealed_timestep(guidance, prompt_utils):
    module = guidance(sqrt_anneal=True, trainer_max_steps=100)
    seen = []
    for step in (0, 25, 100):
        module.do_update_step(0, step)
        seen.append((module.schedule.min_step, module.schedule.max_step))
    assert seen == [(980, 980), (500, 500), (20, 20)]


def test_the_clip_bounds_the_gradient(guidance, prompt_utils):
    clipped, _ = call(guidance(grad_clip=1e-3), prompt_utils())
    assert 0 < clipped["grad_norm"] <= 1e-3 * (BATCH * 4 * 8 * 8) ** 0.5
    free, _ = call(guidance(), prompt_utils())
    assert free["grad_norm"] > clipped["grad_norm"]


def test_upstreams_guidance_scale_counts_one_less(guidance, prompt_utils):
    """eps_c + s (eps_c - eps_u) is the usual form at s + 1; with perp-neg upstream has the usual form."""
    upstream = partial(guidance, "stable-diffusion-guidance", guidance_perp_neg=-0.5)
    for perp_neg, usual_scale in ((False, 21.0), (True, 20.0)):
        utils = prompt_utils(use_perp_neg=perp_neg)
        theirs, _ = call(upstream(guidance_scale=20.0), utils)
        ours, _ = call(guidance("turboprop-sds-guidance", guidance_scale=usual_scale), utils)
        assert torch.equal(theirs["loss_sds"], ours["loss_sds"])


def test_upstreams_score_jacobian_chaining(guidance, prompt_utils):
    utils = prompt_utils()
    reduced, _ = call(guidance("stable-diffusion-guidance", use_sjc=True), utils)
    uniform, _ = call(guidance("stable-diffusion-guidance", weighting_strategy="uniform"), utils)
    assert torch.equal(reduced["loss_sds"], uniform["loss_sds"])
    plain, _ = call(guidance("stable-diffusion-guidance", use_sjc=True, var_red=False), utils)
    jacobian, _ = call(
        guidance("turboprop-guidance", method="sjc", guidance_scale=101.0, weighting_strategy="uniform"),
        utils,
    )
    assert torch.equal(plain["loss_sds"], jacobian["loss_sjc"])
    with pytest.raises(ValueError, match="use_sjc: takes the place of method sds; expected false with csd, got true"):
        guidance("stable-diffusion-guidance", use_sjc=True, method="csd")


def test_hifas_image_loss_is_the_latent_loss_where_latents_are_images():
    prompt = mixture_prompt([1.0, 0.0])
    guidance = mixture_guidance(
        method="sds", guidance_scale=1.0, use_img_loss=True, min_step_percent=0.3, max_step_percent=0.3
    )
    torch.manual_seed(0)
    rgb = (torch.full((2, 4, 4, 3), 0.8)).requires_grad_()
    angles = torch.zeros(2)
    output = guidance(rgb, prompt, angles, angles, angles)
    (latent_gradient,) = torch.autograd.grad(output["loss_sds"], rgb)
    (image_gradient,) = torch.autograd.grad(output["loss_sds_img"], rgb)
    # images are (latents + 1) / 2: at the latents the image gradient is half the latent one, and the chain doubles the
    # latter
    torch.testing.assert_close(4 * image_gradient, latent_gradient, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="use_img_loss: expected rendered images, got latents"):
        guidance(rgb, prompt, angles, angles, angles, rgb_as_latents=True)


def test_latents_in_place_of_images(guidance, prompt_utils):
    data = batch()
    data.pop("rgb")
    latents = torch.rand(BATCH, 6, 6, 4, requires_grad=True)
    output = guidance()(latents, prompt_utils(), **data, rgb_as_latents=True)
    output["loss_asd"].backward()
    assert latents.grad.shape == latents.shape and latents.grad.abs().max() > 0


def test_autocast_around_it_changes_no_number(guidance, prompt_utils):
    module, utils = guidance(), prompt_utils()
    plain, _ = call(module, utils)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, rgb = call(module, utils)
    assert output["loss_asd"].dtype == torch.float32
    torch.testing.assert_close(output["loss_asd"], plain["loss_asd"])
    data = batch()
    half = data.pop("rgb").detach().bfloat16().requires_grad_()
    loss = module(half, utils, **data)["loss_asd"]
    loss.backward()
    assert loss.dtype == torch.float32 and half.grad.isfinite().all()


def test_pictures_of_what_the_teacher_sees(guidance, prompt_utils):
    module = guidance(max_items_eval=3)
    output, _ = call(module, prompt_utils(use_perp_neg=True), guidance_eval=True)
    pictures = output["eval"]
    assert pictures["bs"] == 3 and len(pictures["texts"]) == len(pictures["noise_levels"]) == 3
    assert pictures["texts"][1].split("\n")[1:] == ["e10.0", "a100.0", "c1.00"]
    for name in ("imgs_noisy", "imgs_1step", "imgs_1orig", "imgs_final"):
        picture = pictures[name]
        assert picture.shape == (3, 16, 16, 3) and picture.min() >= 0 and picture.max() <= 1
    plain, _ = call(module, prompt_utils(use_perp_neg=True))
    assert torch.equal(plain["loss_asd"], output["loss_asd"])


def test_the_final_picture_is_the_teachers_mode():
    guidance, prompt = mixture_guidance(guidance_scale=1.0), mixture_prompt([1.0, 0.0])
    torch.manual_seed(0)
    angles = torch.zeros(BATCH)
    pictures = guidance(torch.rand(BATCH, 4, 4, 3), prompt, angles, angles, angles, guidance_eval=True)["eval"]
    assert (pictures["imgs_final"] - 0.9).abs().mean() < 0.12  # of standard deviation 0.1 in [0, 1]
    assert (pictures["imgs_noisy"] - 0.9).abs().mean() > 0.2


@pytest.mark.parametrize(
    ("name", "cfg", "message"),
    [
        (
            "turboprop-guidance",
            {"method": "dds"},
            "method: expected one of sds, csd, normalized_csd, asd, sjc, got 'dds'",
        ),
        (
            "turboprop-guidance",
            {"weighting_strategy": "x"},
            "weighting_strategy: expected one of sds, uniform, fantasia3d",
        ),
        (
            "turboprop-guidance",
            {"guidance_perp_neg": 0.5},
            "guidance_perp_neg: expected a number of at most 0, got 0.5",
        ),
        ("turboprop-guidance", {"trainer_max_steps": 0}, "trainer_max_steps: expected at least 1, got 0"),
        ("turboprop-guidance", {"plus_ratio": -1.0}, "plus_ratio: expected at least 0, got -1"),
        (
            "turboprop-guidance",
            {"min_step_percent": 0.9, "max_step_percent": 0.2},
            "expected 0 <= min <= max <= 1",
        ),
        # met at the first step, not where the two have crossed
        (
            "turboprop-guidance",
            {"min_step_percent": [0, 0.02, 0.5, 1000], "max_step_percent": [0, 0.98, 0.3, 1000]},
            r"expected 0 <= min <= max <= 1 at every step, got 0.5 and 0.3 \(step 1000\)",
        ),
        (
            "turboprop-guidance",
            {"min_step_percent": 0.4, "max_step_percent": [500, 0.3, 0.98, 500]},
            r"got 0.4 and 0.3 \(step 0\)",
        ),
        (
            "stable-diffusion-sdi-guidance",
            {"min_step_percent": 0.9, "max_step_percent": 0.2},
            r"got 0.9 and 0.2 \(step 0\)",
        ),
        ("turboprop-guidance", {"plus_min_step_percent": 1.5}, "plus_min_step_percent: expected a fraction in"),
        ("turboprop-guidance", {"grad_clip": [0, 1.0, -1.0, 9]}, "grad_clip: expected at least 0 at every step"),
        ("turboprop-guidance", {"teacher_type": "turboprop-asd-guidanc"}, "turboprop-asd-guidance"),
        ("turboprop-asd-guidance", {"plus_rato": 0.1}, "plus_rato.*plus_ratio"),
        (
            "stable-diffusion-guidance",
            {"token_merging": True},
            "token_merging: merging tokens is not supported",
        ),
        ("turboprop-guidance", {"pretrained_model_name_or_path": "/nowhere"}, "no folder /nowhere"),
    ],
)
def test_bad_configs_say_what_is_wrong(guidance, name, cfg, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        guidance(name, **cfg)


def test_scaledreamers_config_block(guidance, prompt_utils):
    """The keys and values that its published Stable Diffusion configs have."""
    keys = {
        "guidance_scale": 7.5,
        "plus_ratio": 0.1,
        "plus_random": True,
        "min_step_percent": [0, 0.5, 0.02, 50000],
        "max_step_percent": [0, 0.98, 0.5, 50000],
        "guidance_perp_neg": -0.5,
    }
    theirs = guidance("stable-diffusion-asynchronous-score-distillation-guidance", **keys)
    utils = prompt_utils(use_perp_neg=True)
    output, _ = call(theirs, utils)
    ours, _ = call(guidance("turboprop-asd-guidance", **keys), utils)
    assert torch.equal(output["loss_asd"], ours["loss_asd"])
    assert (output["min_step"], output["max_step"]) == (500, 980)
