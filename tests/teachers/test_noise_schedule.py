import pytest
import torch
from turboprop.teachers.noise_schedule import (
    add_noise,
    remove_noise,
    scaled_linear_alphas_cumprod,
    to_epsilon,
)

ABAR = scaled_linear_alphas_cumprod()
TIMESTEPS = torch.tensor([0, 1, 500, 999])


def random_sample() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(4, 2, 3, 3, dtype=torch.float64), torch.randn(4, 2, 3, 3, dtype=torch.float64)


def test_schedule_is_diffusers_scaled_linear():
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    torch.testing.assert_close(ABAR.float(), theirs, rtol=2e-5, atol=0)


def test_add_noise_is_diffusers():
    from diffusers import DDPMScheduler

    clean, noise = random_sample()
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    theirs = scheduler.add_noise(clean, noise, TIMESTEPS)
    torch.testing.assert_close(add_noise(clean, noise, TIMESTEPS, ABAR), theirs, rtol=1e-4, atol=1e-5)


def test_remove_noise_inverts_add_noise():
    clean, noise = random_sample()
    noisy = add_noise(clean, noise, TIMESTEPS, ABAR)
    torch.testing.assert_close(remove_noise(noisy, noise, TIMESTEPS, ABAR), clean)


def test_every_prediction_type_gives_the_noise_that_was_added():
    from diffusers import DDPMScheduler

    clean, noise = random_sample()
    noisy = add_noise(clean, noise, TIMESTEPS, ABAR)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    velocity = scheduler.get_velocity(clean, noise, TIMESTEPS)
    torch.testing.assert_close(to_epsilon(noise, noisy, TIMESTEPS, ABAR, "epsilon"), noise)
    torch.testing.assert_close(
        to_epsilon(velocity, noisy, TIMESTEPS, ABAR, "v_prediction"), noise, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(to_epsilon(clean, noisy, TIMESTEPS, ABAR, "sample"), noise)


def test_unknown_prediction_type_names_the_known_ones():
    clean, noise = random_sample()
    with pytest.raises(ValueError, match="prediction_type: expected one of epsilon, v_prediction, sample, got 'flow'"):
        to_epsilon(noise, clean, TIMESTEPS, ABAR, "flow")
