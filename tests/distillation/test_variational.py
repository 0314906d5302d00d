"""Variational score distillation: the method against the analytic KL gradient, and the guidance that trains beside."""

import copy
from pathlib import Path

import pytest
import torch
from turboprop.distillation import Conditions, Query, vsd_gradient
from turboprop.distillation.weighting import weight
from turboprop.teachers import GaussianMixtureTeacher, LatentDiffusionTeacher, LowRankTeacher, TextCondition
from turboprop.teachers.loading import Denoiser
from turboprop.teachers.low_rank import CameraCondition
from turboprop.teachers.noise_schedule import signal_and_noise_level

import threestudio

DOUBLE = torch.float64
ROOT = Path(__file__).resolve().parents[2]


def gaussian(mean: float, std: float) -> GaussianMixtureTeacher:
    means = torch.full((1, 2, 1, 1), mean, dtype=DOUBLE)
    return GaussianMixtureTeacher(means, [std])


def whole(batch_size: int) -> Conditions:
    condition = TextCondition(torch.ones(batch_size, 1, 1, dtype=DOUBLE))
    return Conditions(condition, condition)


def noised_kl(mean: torch.Tensor, std: float, target: GaussianMixtureTeacher, timestep: int) -> torch.Tensor:
    """KL of N(mean, std^2) from the target's Gaussian, both noised to t; summed over the two dimensions."""
    signal, level = (part.squeeze() for part in signal_and_noise_level(target.alphas_cumprod, torch.tensor([timestep])))
    own = (signal * std) ** 2 + level**2
    other = (signal * target.stds[0]) ** 2 + level**2
    offset = signal * (mean - target.means.flatten()[0])
    return 2 * 0.5 * ((own / other).log().neg() + own / other - 1 + offset**2 / other)


@pytest.mark.parametrize("timestep", [50, 400, 900])
def test_with_the_renders_exact_score_it_is_the_gradient_of_the_kl_divergence(timestep):
    """Renders N(m, q^2) of a scene whose only parameter is m: the mean over renders of d(render)/dm is 1."""
    target, renders, batch_size = gaussian(2.0, 0.3), gaussian(-0.5, 0.7), 20000
    torch.manual_seed(0)
    latents = -0.5 + 0.7 * torch.randn(batch_size, 2, 1, 1, dtype=DOUBLE)
    timesteps = torch.full((batch_size,), timestep)
    result = vsd_gradient(
        Query(
            target,
            latents,
            whole(batch_size),
            timesteps,
            torch.randn_like(latents),
            timesteps,
            guidance_scale=1.0,
            weighting="sds",
        ),
        render_teacher=renders,
        render_conditions=whole(batch_size),
    )
    mean = torch.tensor(-0.5, dtype=DOUBLE, requires_grad=True)
    (gradient,) = torch.autograd.grad(noised_kl(mean, 0.7, target, timestep), mean)
    signal, level = signal_and_noise_level(target.alphas_cumprod, timesteps[:1])
    # eps = -s grad log p, and d x_t / dm = a: the gradient of the KL is E[eps difference] a / s
    expected = weight(target.alphas_cumprod, timesteps[:1], "sds") * gradient * level / signal
    per_render = result.gradient.flatten(1).sum(1)
    error = per_render.std() / batch_size**0.5
    assert abs(per_render.mean() - expected.item()) < 4 * error + 1e-9
    assert abs(expected.item()) > 20 * error


def test_it_vanishes_where_the_renders_are_the_teachers_distribution():
    target, timesteps = gaussian(2.0, 0.3), torch.tensor([20, 500, 970])
    latents, noise = torch.randn(2, 3, 2, 1, 1, dtype=DOUBLE)
    result = vsd_gradient(
        Query(target, latents, whole(3), timesteps, noise, timesteps, guidance_scale=1.0, weighting="uniform"),
        render_teacher=gaussian(2.0, 0.3),
        render_conditions=whole(3),
        render_guidance_scale=3.0,
    )
    assert result.gradient.abs().max() < 1e-12 and result.render_noise.abs().max() > 0.1


def test_following_it_moves_renders_onto_the_teacher_and_keeps_their_spread():
    """With their exact score, particles take over the teacher's mean and its spread."""
    target = gaussian(2.0, 0.5)
    torch.manual_seed(0)
    particles = 1.5 * torch.randn(256, 2, 1, 1, dtype=DOUBLE)
    for _ in range(400):
        timesteps = torch.randint(20, 600, (256,))
        renders = gaussian(particles.mean().item(), particles.std().item())
        particles -= (
            0.1
            * vsd_gradient(
                Query(
                    target,
                    particles,
                    whole(256),
                    timesteps,
                    torch.randn_like(particles),
                    timesteps,
                    guidance_scale=1.0,
                    weighting="uniform",
                ),
                render_teacher=renders,
                render_conditions=whole(256),
            ).gradient
        )
    assert abs(particles.mean() - 2.0) < 0.1 and abs(particles.std() - 0.5) < 0.1


# ------------------------------------------------------------------------------------------ the low-rank teacher


def camera_condition(batch_size: int, seed: int = 0) -> CameraCondition:
    generator = torch.Generator().manual_seed(seed)
    text = TextCondition(torch.randn(batch_size, 12, 16, generator=generator))
    return CameraCondition(text, torch.randn(batch_size, 16, generator=generator))


def low_rank_pair(folder: Path) -> tuple[LatentDiffusionTeacher, LowRankTeacher]:
    """A teacher and adapters on its own network."""
    teacher = LatentDiffusionTeacher.from_pretrained(str(folder))
    torch.manual_seed(1)
    return teacher, LowRankTeacher(Denoiser(teacher.unet, teacher.alphas_cumprod, teacher.prediction_type), teacher)


def test_adapters_leave_the_shared_network_as_it_was(tiny_sd_folder):
    pristine = LatentDiffusionTeacher.from_pretrained(str(tiny_sd_folder))
    teacher, adapted = low_rank_pair(tiny_sd_folder)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.normal_(std=0.3)
    noisy, timesteps, condition = torch.randn(2, 4, 8, 8), torch.tensor([10, 700]), camera_condition(2)
    before = pristine.predict_noise(noisy, timesteps, condition.asked)
    assert torch.equal(teacher.predict_noise(noisy, timesteps, condition.asked), before)
    own = adapted.predict_noise(noisy, timesteps, condition)
    assert (own - before).abs().max() > 1e-2
    assert torch.equal(teacher.predict_noise(noisy, timesteps, condition.asked), before)
    assert not torch.equal(adapted.predict_noise(noisy, timesteps, condition.without_cameras()), own)


def test_its_parameters_are_the_adapters_and_the_camera_alone(tiny_sd_folder):
    teacher, adapted = low_rank_pair(tiny_sd_folder)
    names = set(adapted.state_dict())
    assert names == {name for name, _ in adapted.named_parameters()}
    assert all(name.startswith(("adapters.", "camera_embedding.")) for name in names)
    count = sum(parameter.numel() for parameter in adapted.parameters())
    assert count < 0.3 * sum(parameter.numel() for parameter in teacher.unet.parameters())
    assert all(parameter.requires_grad for parameter in adapted.parameters())
    frozen = [p for name, p in teacher.unet.named_parameters() if "lora" not in name]
    assert frozen and not any(parameter.requires_grad for parameter in frozen)


@pytest.mark.parametrize("fixture", ["tiny_sd_folder", "tiny_sd_v_folder"])
def test_the_loss_is_that_of_its_own_prediction_type(fixture, request):
    """In epsilon the error of v is that of epsilon / a: (v_hat - v) a_t = eps_hat - eps at a given x_t."""
    _, adapted = low_rank_pair(request.getfixturevalue(fixture))
    torch.manual_seed(2)
    latents, noise = torch.randn(2, 1, 4, 8, 8)
    timesteps, condition = torch.tensor([600]), camera_condition(1)
    loss = adapted.denoising_loss(latents, noise, timesteps, condition)
    estimate = adapted.predict_noise(adapted.add_noise(latents, noise, timesteps), timesteps, condition)
    signal, _ = signal_and_noise_level(adapted.alphas_cumprod, timesteps)
    factor = 1.0 if fixture == "tiny_sd_folder" else 1.0 / signal.item()
    torch.testing.assert_close(loss, factor**2 * (estimate - noise).square().mean(), rtol=1e-4, atol=1e-6)


def test_training_lowers_the_loss_and_reaches_every_adapter(tiny_sd_folder):
    _, adapted = low_rank_pair(tiny_sd_folder)
    torch.manual_seed(3)
    latents, noise = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
    timesteps, condition = torch.tensor([100, 300, 600, 900]), camera_condition(4)
    before = {name: parameter.detach().clone() for name, parameter in adapted.named_parameters()}
    optimizer = torch.optim.Adam(adapted.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = adapted.denoising_loss(latents, noise, timesteps, condition)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    assert all(not torch.equal(before[name], parameter) for name, parameter in adapted.named_parameters())


# ------------------------------------------------------------------------------------------------- the guidance


@pytest.fixture()
def guidance(tiny_sd_folder, tiny_sd_v_folder):
    def make(name="stable-diffusion-vsd-guidance", seed=0, lora="v", **cfg):
        torch.manual_seed(seed)
        loras = {"v": str(tiny_sd_v_folder), "own": "", "same": str(tiny_sd_folder)}
        keys = {"pretrained_model_name_or_path_lora": loras[lora], **cfg}
        return threestudio.find(name)({"pretrained_model_name_or_path": str(tiny_sd_folder), **keys})

    return make


@pytest.fixture()
def prompt_utils(tiny_sd_folder, text_cache):
    def make(**cfg):
        keys = {"pretrained_model_name_or_path": str(tiny_sd_folder), "prompt": "a red chair", **cfg}
        return threestudio.find("stable-diffusion-prompt-processor")(keys)()

    return make


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return {
        "rgb": torch.rand(2, 12, 12, 3, requires_grad=True),
        "elevation": torch.tensor([0.0, 10.0]),
        "azimuth": torch.tensor([0.0, 100.0]),
        "camera_distances": torch.ones(2),
        "mvp_mtx": torch.randn(2, 4, 4),
        "c2w": torch.randn(2, 4, 4),
    }


def call(module, utils, seed=1, **kwargs):
    data = batch()
    rgb = data.pop("rgb")
    torch.manual_seed(seed)
    return module(rgb, utils, **data, **kwargs), rgb


@pytest.mark.parametrize("lora", ["v", "own", "same"])
@pytest.mark.parametrize("perp_neg", [False, True])
def test_a_step_teaches_the_scene_and_the_adapters_apart(guidance, prompt_utils, lora, perp_neg):
    module = guidance(lora=lora, lora_n_timestamp_samples=2)
    output, rgb = call(module, prompt_utils(use_perp_neg=perp_neg), rays_o=None, height=12)
    assert {"loss_vsd", "loss_lora", "grad_norm", "min_step", "max_step"} <= set(output)
    assert all(torch.as_tensor(value).numel() == 1 for value in output.values())
    scene, *adapters = torch.autograd.grad(
        output["loss_vsd"], [rgb, *module.parameters()], retain_graph=True, allow_unused=True
    )
    assert scene.abs().max() > 0 and all(gradient is None for gradient in adapters)
    (output["loss_lora"]).backward()
    assert rgb.grad is None
    gradients = [parameter.grad for parameter in module.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_the_state_is_small_and_restores_bit_for_bit(guidance, prompt_utils):
    utils, module = prompt_utils(), guidance()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    for seed in range(2):
        optimizer.zero_grad()
        call(module, utils, seed)[0]["loss_lora"].backward()
        optimizer.step()
    state = copy.deepcopy(module.state_dict())
    assert state and all(name.startswith(("lora.adapters.", "lora.camera_embedding.")) for name in state)
    other = guidance(seed=99)
    assert not torch.equal(call(other, utils)[0]["loss_vsd"], call(module, utils)[0]["loss_vsd"])
    other.load_state_dict(state)
    ours, theirs = call(module, utils)[0], call(other, utils)[0]
    assert torch.equal(ours["loss_vsd"], theirs["loss_vsd"]) and torch.equal(ours["loss_lora"], theirs["loss_lora"])


def test_the_camera_is_what_the_key_says(guidance, prompt_utils):
    utils, data = prompt_utils(), batch()
    rgb = data.pop("rgb")
    for kind, used, unused in (("extrinsics", "c2w", "mvp_mtx"), ("mvp", "mvp_mtx", "c2w")):
        module = guidance(camera_condition_type=kind)

        def loss(module=module, **changed):
            torch.manual_seed(1)
            return module(rgb, utils, **{**data, **changed})["loss_vsd"]

        assert torch.equal(loss(), loss(**{unused: torch.zeros(2, 4, 4)}))
        assert not torch.equal(loss(), loss(**{used: torch.zeros(2, 4, 4)}))


def test_a_tenth_of_the_training_samples_has_no_camera(tiny_sd_folder):
    seen = []

    class Recording(GaussianMixtureTeacher):
        def denoising_loss(self, latents, noise, timesteps, condition):
            seen.append(condition.cameras)
            return latents.sum()

    teacher = LatentDiffusionTeacher.from_pretrained(str(tiny_sd_folder))
    recording = Recording(torch.zeros(1, 4, 8, 8), [1.0])
    for drops, low, high in ((True, 0.06, 0.14), (False, 0.0, 0.0)):
        module = threestudio.find("turboprop-vsd-guidance")(
            {"lora_cfg_training": drops, "lora_n_timestamp_samples": 1000}, teacher, recording
        )
        condition = CameraCondition(TextCondition(torch.zeros(2, 12, 16)), torch.ones(2, 16))
        torch.manual_seed(0)
        module.training_loss(torch.zeros(2, 4, 8, 8), condition)
        without = (seen[-1] == 0).all(dim=1).float().mean()
        assert seen[-1].shape == (2000, 16) and low <= without <= high


def test_hifas_image_loss_compares_what_both_teachers_imagine(guidance, prompt_utils):
    output, rgb = call(guidance(use_img_loss=True, grad_clip=1e-4), prompt_utils())
    (gradient,) = torch.autograd.grad(output["loss_vsd_img"], rgb)
    assert gradient.abs().max() > 0
    assert output["loss_vsd_img"] <= 0.5 * 3 * 16 * 16 * 1e-8 * 1.0001  # the clip bounds the image gradient too


def test_previews_leave_the_global_generator_alone(guidance, prompt_utils):
    module, utils, data = guidance(lora="own"), prompt_utils(), batch()
    data.pop("rgb")
    state = torch.get_rng_state()
    teachers, own = module.sample(utils, **data, seed=3), module.sample_lora(utils, **data, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    for picture in (teachers, own):
        assert picture.shape == (2, 16, 16, 3) and 0 <= picture.min() and picture.max() <= 1
    assert torch.equal(module.sample(utils, **data, seed=3), teachers)
    assert not torch.equal(module.sample(utils, **data, seed=4), teachers)
    assert not torch.equal(own, teachers)


def test_pictures_of_what_the_teacher_sees(guidance, prompt_utils):
    output, _ = call(guidance(), prompt_utils(), guidance_eval=True)
    assert output["eval"]["bs"] == 2 and output["eval"]["imgs_final"].shape == (2, 16, 16, 3)


def test_annealed_steps_and_rendered_latents(guidance, prompt_utils):
    module = guidance(max_step_percent=[5000, 0.98, 0.5, 5001])
    module.do_update_step(0, 0)
    assert module.schedule.max_step == 980
    module.do_update_step(0, 6000)
    assert module.schedule.max_step == 500
    annealed = guidance(sqrt_anneal=True, trainer_max_steps=100)
    annealed.do_update_step(0, 25)
    assert annealed.schedule.min_step == annealed.schedule.max_step == 500
    data = batch()
    data.pop("rgb")
    latents = torch.rand(2, 6, 6, 4, requires_grad=True)
    module(latents, prompt_utils(), **data, rgb_as_latents=True)["loss_vsd"].backward()
    assert latents.grad.abs().max() > 0


def test_a_config_of_another_method_runs_it(guidance, prompt_utils):
    """The keys of an ASD or SDS config of ours are known, so guidance_type alone swaps the method."""
    keys = {"guidance_scale": 7.5, "plus_ratio": 0.2, "plus_random": True, "weighting_strategy": "uniform"}
    output, _ = call(guidance("turboprop-vsd-guidance", lora="own", **keys), prompt_utils())
    assert output["loss_vsd"].isfinite()


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"camera_condition_type": "c2w"}, "camera_condition_type: expected one of extrinsics, mvp, got 'c2w'"),
        ({"lora_n_timestamp_samples": 0}, "lora_n_timestamp_samples: expected at least 1, got 0"),
        ({"lora_rank": 0}, "lora_rank: expected at least 1, got 0"),
        ({"lora_cfg_trainin": True}, "lora_cfg_trainin.*lora_cfg_training"),
        ({"pretrained_model_name_or_path_lora": "/nowhere"}, "no folder /nowhere"),
        ({"enable_sequential_cpu_offload": True}, "enable_sequential_cpu_offload: .* expected false, got true"),
        ({"weighting_strategy": "x"}, "weighting_strategy: expected one of sds, uniform, fantasia3d"),
    ],
)
def test_bad_configs_say_what_is_wrong(guidance, cfg, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        guidance(**cfg)


def test_a_teacher_without_a_network_needs_one_to_adapt():
    mixture = GaussianMixtureTeacher(torch.zeros(1, 4, 8, 8), [1.0])
    with pytest.raises(ValueError, match="GaussianMixtureTeacher has no network to put adapters on"):
        threestudio.find("turboprop-vsd-guidance")({}, teacher=mixture)


def test_a_network_for_other_texts_is_refused(guidance, tiny_sd_folder):
    teacher = LatentDiffusionTeacher.from_pretrained(str(tiny_sd_folder))
    mini_sd = str(ROOT / "assets/teachers/mini-sd")
    with pytest.raises(ValueError, match=r"its unet takes text embeddings of \d+ numbers, the teacher's takes 16"):
        threestudio.find("turboprop-vsd-guidance")({"pretrained_model_name_or_path_lora": mini_sd}, teacher)


def test_a_pixel_space_teacher_learns_of_renders_too(tiny_if_folder, text_cache):
    folder = {"pretrained_model_name_or_path": str(tiny_if_folder)}
    utils = threestudio.find("deep-floyd-prompt-processor")({"prompt": "a red chair", **folder})()
    module = threestudio.find("turboprop-vsd-guidance")(folder)
    output, rgb = call(module, utils)
    (output["loss_vsd"] + output["loss_lora"]).backward()
    assert rgb.grad.abs().max() > 0
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_another_schedule_is_refused(guidance, tiny_sd_folder):
    teacher = LatentDiffusionTeacher.from_pretrained(str(tiny_sd_folder))
    cosine = torch.linspace(0.999, 0.001, 1000)
    with pytest.raises(ValueError, match="its noise schedule is not the teacher's"):
        LowRankTeacher(Denoiser(teacher.unet, cosine, "epsilon"), teacher)


def test_the_method_key_points_to_it(tiny_sd_folder):
    cfg = {"method": "vsd", "pretrained_model_name_or_path": str(tiny_sd_folder)}
    with pytest.raises(ValueError, match="set guidance_type=turboprop-vsd-guidance"):
        threestudio.find("turboprop-guidance")(cfg)


def test_the_small_world_teacher_learns_of_renders():
    """The shipped teacher: a few steps on one gray picture lower the loss there."""
    torch.manual_seed(0)
    module = threestudio.find("turboprop-vsd-guidance")(
        {"pretrained_model_name_or_path": str(ROOT / "assets/teachers/mini-sd")}
    )
    teacher = module.teacher
    width = teacher.unet.config.cross_attention_dim
    condition = CameraCondition(TextCondition(torch.zeros(2, 4, width)), torch.eye(4).reshape(1, 16).expand(2, -1))
    latents = teacher.encode(torch.zeros(2, 3, teacher.image_size, teacher.image_size)).detach()
    noise, timesteps = torch.randn_like(latents), torch.tensor([400, 800])
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = module.lora.denoising_loss(latents, noise, timesteps, condition)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
