"""The forward diffusion process and the prediction types of a denoiser, as pure functions.

Notation: x_t = a_t x_0 + s_t eps, with a_t = sqrt(alphas_cumprod[t]) and s_t = sqrt(1 - alphas_cumprod[t]).
"""

import torch
from torch import Tensor

from threestudio.utils.value_checks import check_choice

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def check_prediction_type(prediction_type: str) -> None:
    """Raises UserError for a prediction type that `to_epsilon` does not know."""
    check_choice("prediction_type", prediction_type, PREDICTION_TYPES)


def scaled_linear_alphas_cumprod(
    num_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> Tensor:
    """The schedule of latent diffusion (Rombach et al. 2022): sqrt(beta) is linear in t. Returns [T], float64."""
    sqrt_betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float64)
    return torch.cumprod(1.0 - sqrt_betas**2, dim=0)


def signal_and_noise_level(
    alphas_cumprod: Tensor,  # [T]
    timesteps: Tensor,  # [B], integer
    ndim: int = 4,
) -> tuple[Tensor, Tensor]:
    """(a_t, s_t), each of shape [B, 1, ...] with `ndim` dimensions."""
    shape = (-1,) + (1,) * (ndim - 1)
    abar = alphas_cumprod[timesteps].view(shape)
    return abar.sqrt(), (1.0 - abar).sqrt()


def add_noise(
    clean: Tensor,  # [B, C, h, w]
    noise: Tensor,  # [B, C, h, w]
    timesteps: Tensor,  # [B]
    alphas_cumprod: Tensor,  # [T]
) -> Tensor:
    """x_t = a_t x_0 + s_t eps (Ho et al. 2020, equation 4). Returns [B, C, h, w]."""
    signal, level = signal_and_noise_level(alphas_cumprod, timesteps, clean.ndim)
    return (signal * clean + level * noise).to(clean.dtype)


def remove_noise(
    noisy: Tensor,  # [B, C, h, w]
    epsilon: Tensor,  # [B, C, h, w]
    timesteps: Tensor,  # [B]
    alphas_cumprod: Tensor,  # [T]
) -> Tensor:
    """The clean sample that `epsilon` implies: x_0 = (x_t - s_t eps) / a_t. Returns [B, C, h, w]."""
    signal, level = signal_and_noise_level(alphas_cumprod, timesteps, noisy.ndim)
    return ((noisy - level * epsilon) / signal).to(noisy.dtype)


def to_epsilon(
    prediction: Tensor,  # [B, C, h, w], what the network answers
    noisy: Tensor,  # [B, C, h, w], what it was asked about
    timesteps: Tensor,  # [B]
    alphas_cumprod: Tensor,  # [T]
    prediction_type: str,
) -> Tensor:
    """Any prediction type as epsilon. Returns [B, C, h, w].

    With v = a_t eps - s_t x_0 (Salimans and Ho 2022, appendix D): eps = a_t v + s_t x_t.
    With x_0: eps = (x_t - a_t x_0) / s_t.
    """
    check_prediction_type(prediction_type)
    if prediction_type == "epsilon":
        return prediction
    signal, level = signal_and_noise_level(alphas_cumprod, timesteps, noisy.ndim)
    if prediction_type == "v_prediction":
        return (signal * prediction + level * noisy).to(prediction.dtype)
    return ((noisy - signal * prediction) / level).to(prediction.dtype)


def prediction_target(
    clean: Tensor,  # [B, C, h, w]
    noise: Tensor,  # [B, C, h, w]
    timesteps: Tensor,  # [B]
    alphas_cumprod: Tensor,  # [T]
    prediction_type: str,
) -> Tensor:
    """What a network of a prediction type is trained to answer about add_noise(clean, noise). Returns [B, C, h, w]."""
    check_prediction_type(prediction_type)
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return clean
    signal, level = signal_and_noise_level(alphas_cumprod, timesteps, clean.ndim)
    return (signal * noise - level * clean).to(clean.dtype)
