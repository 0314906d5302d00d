"""Samples of a teacher, by the deterministic sampler of diffusion models."""

from collections.abc import Callable

import torch
from torch import Tensor

from .noise_schedule import remove_noise, signal_and_noise_level

GuidedNoise = Callable[[Tensor, Tensor], Tensor]  # (noisy [B, C, h, w], timesteps [B]) -> epsilon [B, C, h, w]


def ddim_step(
    noisy: Tensor,  # [B, C, h, w], at `timesteps`
    epsilon: Tensor,  # [B, C, h, w]
    timesteps: Tensor,  # [B]
    previous: Tensor,  # [B], < timesteps; below 0 means clean
    alphas_cumprod: Tensor,  # [T]
) -> Tensor:
    """One deterministic step towards clean [B, C, h, w] (DDIM, Song et al. 2020, equation 12 with sigma = 0)."""
    clean = remove_noise(noisy, epsilon, timesteps, alphas_cumprod)
    signal, level = signal_and_noise_level(alphas_cumprod, previous.clamp(min=0), noisy.ndim)
    done = (previous < 0).view(-1, *[1] * (noisy.ndim - 1))
    return torch.where(done, clean, (signal * clean + level * epsilon).to(noisy.dtype))


@torch.no_grad()
def ddim_sample(
    noisy: Tensor,  # [B, C, h, w]
    timesteps: Tensor,  # [B], where each sample starts
    guided_noise: GuidedNoise,
    alphas_cumprod: Tensor,  # [T]
    num_steps: int = 50,  # of a whole descent from T - 1; a later start takes its share
) -> Tensor:
    """Follows the guided teacher from `timesteps` down to clean. Returns [B, C, h, w]. No random draws."""
    stride = max(alphas_cumprod.shape[0] // num_steps, 1)
    current = timesteps.clone()
    while bool((current >= 0).any()):
        running = current >= 0
        epsilon = guided_noise(noisy, current.clamp(min=0))
        stepped = ddim_step(noisy, epsilon, current.clamp(min=0), current - stride, alphas_cumprod)
        noisy = torch.where(running.view(-1, *[1] * (noisy.ndim - 1)), stepped, noisy)
        current = current - stride
    return noisy
