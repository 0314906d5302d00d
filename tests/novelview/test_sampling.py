"""DDIM with guidance, on a denoiser whose answer is known."""

import pytest
import torch
from turboprop.novelview.condition import NovelViewCondition
from turboprop.novelview.sampling import sample_latents, sampling_timesteps
from turboprop.teachers.noise_schedule import scaled_linear_alphas_cumprod, signal_and_noise_level

ABAR = scaled_linear_alphas_cumprod()
SHAPE = (3, 4, 8, 8)


def condition_of(value: float) -> NovelViewCondition:
    return NovelViewCondition(torch.full(SHAPE, value), torch.ones(3, 1, 2))


def predict(noisy, timesteps, condition):
    """The exact noise if the clean sample is the condition's latent: a world of one picture."""
    signal, level = signal_and_noise_level(ABAR, timesteps)
    return (noisy - signal * condition.latents) / level


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_a_perfect_denoiser_is_followed_to_its_picture(eta, steps):
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    latents = sample_latents(predict, ABAR, condition_of(0.7), noise, steps, guidance_scale=1.0, eta=eta)
    torch.testing.assert_close(latents, torch.full(SHAPE, 0.7, dtype=torch.float64))


def test_guidance_goes_beyond_the_condition():
    """The null's clean sample is 0: with scale s the guided clean sample is s times the condition's, at each step."""
    noise = torch.randn(SHAPE, dtype=torch.float64)
    latents = sample_latents(predict, ABAR, condition_of(0.5), noise, 10, guidance_scale=3.0, eta=0.0)
    torch.testing.assert_close(latents, torch.full(SHAPE, 1.5, dtype=torch.float64))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_variance_of_the_process_is_kept(eta):
    """A denoiser of a standard Gaussian: x_t is N(0, 1) at every t, so the sample is, but for the steps' size."""

    def gaussian(noisy, timesteps, condition):
        return noisy * signal_and_noise_level(ABAR, timesteps)[1]

    noise = torch.randn(4, 4, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    condition = NovelViewCondition(torch.zeros(4, 4, 32, 32), torch.zeros(4, 1, 2))
    errors = []
    for steps in (20, 200):
        torch.manual_seed(2)
        latents = sample_latents(gaussian, ABAR, condition, noise, steps, 1.0, eta)
        errors.append(abs(float(latents.std()) - 1.0))
    assert errors[1] < 0.03 and errors[1] < 0.5 * errors[0]


def test_the_steps_noise_can_be_given():
    noise = torch.randn(SHAPE, dtype=torch.float64)

    def half(noisy, timesteps, condition):
        return 0.5 * noisy

    def draws(seed):
        def noise_of(step):
            generator = torch.Generator().manual_seed(10 * seed + step)
            return torch.randn(SHAPE, generator=generator, dtype=torch.float64)

        return noise_of

    given = (half, ABAR, condition_of(0.0), noise, 5, 1.0, 1.0)
    first, again, other = (sample_latents(*given, draws(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_timesteps_begin_at_the_last_one():
    assert sampling_timesteps(1000, 4) == [999, 749, 499, 249]
    assert sampling_timesteps(1000, 1) == [999]
    with pytest.raises(ValueError, match="num_steps: expected 1 to 1000, got 0"):
        sampling_timesteps(1000, 0)
