"""Score distillation via inversion: DDIM inversion against closed forms, and the guidance under upstream's name."""

import pytest
import torch
from turboprop.distillation import Conditions, Query, ddim_inversion, sdi_gradient, sds_gradient
from turboprop.distillation.inversion import inversion_step, posterior_std
from turboprop.teachers import GaussianMixtureTeacher, TextCondition
from turboprop.teachers.noise_schedule import signal_and_noise_level
from turboprop.teachers.sampling import ddim_sample, ddim_step

import threestudio

DOUBLE = torch.float64


def mixture() -> GaussianMixtureTeacher:
    means = torch.tensor([0.3, -0.3], dtype=DOUBLE).view(2, 1, 1, 1).expand(2, 2, 2, 2)
    return GaussianMixtureTeacher(means, [0.5, 0.4])


def one_gaussian() -> GaussianMixtureTeacher:
    return GaussianMixtureTeacher(torch.full((1, 2, 2, 2), 0.3, dtype=DOUBLE), [0.6])


def about(teacher: GaussianMixtureTeacher, batch_size: int, weights=None) -> TextCondition:
    count = len(teacher.stds)
    row = torch.full((count,), 1 / count, dtype=DOUBLE) if weights is None else torch.tensor(weights, dtype=DOUBLE)
    return TextCondition(row.view(1, 1, -1).expand(batch_size, -1, -1))


def noise_of(teacher, condition):
    return lambda noisy, timesteps: teacher.predict_noise(noisy, timesteps, condition)


def points(count: int = 4) -> torch.Tensor:
    torch.manual_seed(0)
    return 0.8 * torch.randn(count, 2, 2, 2, dtype=DOUBLE)


def test_inversion_of_a_gaussian_follows_its_probability_flow():
    """The flow of N(m, q^2) keeps (x_t - a m) / sqrt(a^2 q^2 + s^2) as it is (Song et al. 2020, arXiv 2011.13456)."""
    teacher, latents = one_gaussian(), points()
    condition = about(teacher, 4)
    until = torch.tensor([150, 400, 700, 999])
    errors = []
    for steps in (20, 100, 500):
        noisy = ddim_inversion(latents, until, noise_of(teacher, condition), teacher.alphas_cumprod, steps)
        signal, level = signal_and_noise_level(teacher.alphas_cumprod, until)
        expected = signal * 0.3 + (latents - 0.3) / 0.6 * ((signal * 0.6) ** 2 + level**2).sqrt()
        errors.append((noisy - expected).abs().max().item())
    assert errors[0] > 2.5 * errors[1] > 2.5 * 2.5 * errors[2] and errors[2] < 0.02


def test_denoising_what_was_inverted_returns_it():
    teacher, latents = mixture(), points()
    condition = about(teacher, 4)
    until = torch.tensor([199, 399, 699, 999])
    errors = []
    for steps in (10, 50, 250):
        noisy = ddim_inversion(latents, until, noise_of(teacher, condition), teacher.alphas_cumprod, steps)
        back = ddim_sample(noisy, until, noise_of(teacher, condition), teacher.alphas_cumprod, steps)
        errors.append((back - latents).abs().max().item())
    assert errors[0] > 3 * errors[1] > 3 * 3 * errors[2] and errors[2] < 0.06
    assert (noisy - latents).abs().max() > 0.5  # it went somewhere


def test_a_step_forth_and_back_is_exact_with_the_same_noise():
    alphas_cumprod = mixture().alphas_cumprod
    latents, epsilon = points(), torch.randn(4, 2, 2, 2, dtype=DOUBLE)
    earlier, later = torch.tensor([-1, 0, 300, 700]), torch.tensor([100, 50, 301, 999])
    forth = inversion_step(latents, epsilon, earlier, later, alphas_cumprod)
    torch.testing.assert_close(ddim_step(forth, epsilon, later, earlier, alphas_cumprod), latents)


def test_each_sample_stops_at_its_own_timestep():
    teacher, latents = mixture(), points()
    until = torch.tensor([5, 250, 600, 999])
    together = ddim_inversion(latents, until, noise_of(teacher, about(teacher, 4)), teacher.alphas_cumprod, 10)
    for index in range(4):
        one = slice(index, index + 1)
        alone = ddim_inversion(
            latents[one], until[one], noise_of(teacher, about(teacher, 1)), teacher.alphas_cumprod, 10
        )
        torch.testing.assert_close(together[one], alone)


def test_fresh_noise_has_ddpms_posterior_variance():
    """beta_tilde = (1 - abar_before) / (1 - abar) beta (Ho et al. 2020, equation 7)."""
    alphas_cumprod = mixture().alphas_cumprod
    earlier, later = torch.tensor([-1, 41, 700]), torch.tensor([99, 42, 800])
    beta = 1 - alphas_cumprod[42] / alphas_cumprod[41]
    expected = (1 - alphas_cumprod[41]) / (1 - alphas_cumprod[42]) * beta
    std = posterior_std(earlier, later, alphas_cumprod).flatten()
    assert std[0] == 0 and std[2] > 0
    torch.testing.assert_close(std[1] ** 2, expected)
    teacher, latents = mixture(), points()
    until = torch.full((4,), 500)
    guided = noise_of(teacher, about(teacher, 4))
    plain, still = (ddim_inversion(latents, until, guided, alphas_cumprod, 10) for _ in range(2))
    noisy = ddim_inversion(latents, until, guided, alphas_cumprod, 10, eta=0.3)
    assert torch.equal(plain, still) and not torch.equal(plain, noisy)


def gradient(teacher, latents, conditions, timesteps, later, **options):
    query = Query(teacher, latents, conditions, timesteps, torch.randn_like(latents), later, guidance_scale=1.0)
    return sdi_gradient(query, **{"inversion_eta": 0.0, **options})


def test_it_is_sds_rescaled_where_the_noise_is_given():
    """z - z_hat = (s / a) (eps_hat - eps)."""
    teacher, latents = mixture(), points()
    conditions = Conditions(about(teacher, 4, [1.0, 0.0]), about(teacher, 4))
    timesteps, noise = torch.tensor([30, 300, 600, 900]), torch.randn(4, 2, 2, 2, dtype=DOUBLE)
    query = Query(teacher, latents, conditions, timesteps, noise, timesteps, guidance_scale=3.0, weighting="uniform")
    sdi, sds = sdi_gradient(query, invert=False), sds_gradient(query)
    signal, level = signal_and_noise_level(teacher.alphas_cumprod, timesteps)
    torch.testing.assert_close(sdi.gradient, level / signal * sds.gradient)


def test_its_target_lies_on_the_trajectory_that_the_inversion_found():
    """For one Gaussian the clean estimate at t has a closed form along the flow; the error falls with the steps."""
    teacher, latents = one_gaussian(), points()
    conditions = Conditions(about(teacher, 4), about(teacher, 4))
    timesteps = torch.tensor([150, 400, 700, 900])
    signal, level = signal_and_noise_level(teacher.alphas_cumprod, timesteps)
    spread = (signal * 0.6) ** 2 + level**2
    noisy = signal * 0.3 + (latents - 0.3) / 0.6 * spread.sqrt()
    target = 0.3 + signal * 0.6**2 / spread * (noisy - signal * 0.3)  # the posterior mean of x_0
    errors = []
    for steps in (20, 100, 500):
        found = gradient(
            teacher, latents, conditions, timesteps, timesteps, inversion_n_steps=steps, inversion_guidance_scale=1.0
        )
        errors.append((found.gradient - (latents - target)).abs().max().item())
    assert errors[0] > 2 * errors[1] > 2 * 2 * errors[2] and errors[2] < 0.02


def test_the_noise_is_the_renders_own_not_the_draws():
    teacher, latents = mixture(), points()
    conditions = Conditions(about(teacher, 4, [1.0, 0.0]), about(teacher, 4))
    timesteps, later = torch.tensor([30, 300, 600, 900]), torch.tensor([80, 310, 650, 999])
    torch.manual_seed(1)
    first = gradient(teacher, latents, conditions, timesteps, later)
    again = gradient(teacher, latents, conditions, timesteps, later)  # other draws
    assert torch.equal(first.gradient, again.gradient)
    noisier = gradient(teacher, latents, conditions, timesteps, later, inversion_eta=0.3)
    assert not torch.equal(noisier.gradient, first.gradient)


# -------------------------------------------------------------------------------------------------- the guidance


@pytest.fixture()
def parts(tiny_sd_folder, text_cache):
    def make(perp_neg=True, **cfg):
        folder = {"pretrained_model_name_or_path": str(tiny_sd_folder)}
        prompt = {"prompt": "a red chair", "use_perp_neg": perp_neg, **folder}
        guidance = threestudio.find("stable-diffusion-sdi-guidance")({**folder, **cfg})
        return guidance, threestudio.find("stable-diffusion-prompt-processor")(prompt)()

    return make


def call(guidance, prompt_utils, seed=1, **kwargs):
    torch.manual_seed(0)
    rgb = torch.rand(2, 12, 12, 3, requires_grad=True)
    cameras = (torch.tensor([0.0, 10.0]), torch.tensor([0.0, 100.0]), torch.ones(2))
    torch.manual_seed(seed)
    return guidance(rgb, prompt_utils, *cameras, **kwargs), rgb


UPSTREAM = {
    "guidance_scale": 7.5,
    "weighting_strategy": "sds",
    "min_step_percent": 0.25,
    "max_step_percent": 0.98,
    "enable_sdi": True,
    "inversion_guidance_scale": -7.5,
    "inversion_n_steps": 10,
    "inversion_eta": 0.3,
    "t_anneal": True,
}


@pytest.mark.parametrize("perp_neg", [False, True])
def test_upstreams_config_block_runs(parts, perp_neg):
    guidance, utils = parts(perp_neg, **UPSTREAM)
    output, rgb = call(guidance, utils, guidance_eval=True, c2w=None, height=12)
    assert {"loss_sdi", "grad_norm", "min_step", "max_step", "eval"} <= set(output)
    output["loss_sdi"].backward()
    assert rgb.grad.isfinite().all() and rgb.grad.abs().max() > 0
    assert output["eval"]["imgs_final"].shape == (2, 16, 16, 3)


def test_the_loss_is_the_mean_over_the_batch_and_divided_by_it_again(parts):
    guidance, utils = parts(max_step_percent=0.3, min_step_percent=0.3)
    output, _ = call(guidance, utils)
    expected = 0.5 * output["grad_norm"] ** 2 / (2 * 4 * 8 * 8) / 2
    torch.testing.assert_close(output["loss_sdi"], expected, rtol=1e-4, atol=0)


def test_one_timestep_falls_with_the_runs_progress(parts):
    guidance, _ = parts(min_step_percent=0.25, max_step_percent=0.98, trainer_max_steps=100)
    seen = []
    for step in (0, 50, 100, 200):
        guidance.do_update_step(0, step)
        seen.append((guidance.schedule.min_step, guidance.schedule.max_step))
    assert seen == [(980, 980), (615, 615), (250, 250), (250, 250)]
    free, _ = parts(t_anneal=False)
    assert (free.schedule.min_step, free.schedule.max_step) == (20, 980)
    timesteps, later = free.schedule.draw(2000)
    assert 0 <= (later - timesteps).min() and 80 < (later - timesteps).max() < 100 and later.max() <= 999


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("t_anneal", [False, True])
def test_the_levels_are_those_of_a_set_of_views(parts, shared, t_anneal):
    """One t and one level that its noise is found at, for all views of an object: a teacher sees them together."""
    guidance, _ = parts(n_view=4, shared_timesteps=shared, t_anneal=t_anneal)
    torch.manual_seed(0)
    timesteps, later = (steps.view(10, 4) for steps in guidance.schedule.draw(40))
    for sets in (timesteps, later, later - timesteps):
        assert (sets == sets[:, :1]).all()
    assert len(timesteps[:, 0].unique()) == (1 if shared or t_anneal else 10)
    assert (len((later - timesteps)[:, 0].unique()) == 1) == shared
    with pytest.raises(ValueError, match="n_view: expected a batch of whole sets of 4 views, got 6 views"):
        guidance.schedule.draw(6)


def test_without_inversion_noise_is_drawn(parts):
    still, utils = parts(enable_sdi=True, inversion_eta=0.0, t_anneal=False, min_step_percent=0.5, max_step_percent=0.5)
    drawn, _ = parts(enable_sdi=False, t_anneal=False, min_step_percent=0.5, max_step_percent=0.5)
    assert not torch.equal(call(drawn, utils, 1)[0]["loss_sdi"], call(drawn, utils, 2)[0]["loss_sdi"])
    assert call(still, utils, 1)[0]["loss_sdi"] != call(drawn, utils, 1)[0]["loss_sdi"]


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"inversion_n_steps": 0}, "inversion_n_steps: expected at least 1, got 0"),
        ({"inversion_eta": -0.1}, "inversion_eta: expected at least 0, got -0.1"),
        ({"token_merging": True}, "token_merging: merging tokens is not supported"),
        ({"inversion_steps": 3}, "inversion_steps.*inversion_n_steps"),
    ],
)
def test_bad_configs_say_what_is_wrong(parts, cfg, message):
    with pytest.raises(ValueError, match=message):
        parts(**cfg)
