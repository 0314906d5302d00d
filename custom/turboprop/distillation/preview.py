"""What the teacher makes of noisy latents, as pictures: for looking at a guidance while it trains."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..teachers.contract import Teacher
from ..teachers.noise_schedule import remove_noise, signal_and_noise_level

GuidedNoise = Callable[
    [Tensor, Tensor], Tensor
]  # (noisy [B, C, h, w], timesteps [B]) -> epsilon [B, C, h, w]


def ddim_step(
    noisy: Tensor,  # [B, C, h, w], at `timesteps`
    epsilon: Tensor,  # [B, C, h, w]
    timesteps: Tensor,  # [B]
    previous: Tensor,  # [B], < timesteps; below 0 means clean
    alphas_cumprod: Tensor,  # [T]
) -> Tensor:
    """One deterministic step towards clean (DDIM, Song et al. 2020, equation 12 with sigma = 0). Returns [B, C, h, w]."""
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


@torch.no_grad()
def guidance_pictures(
    teacher: Teacher,
    noisy: Tensor,  # [B, C, h, w]
    timesteps: Tensor,  # [B]
    guided_noise: GuidedNoise,
    elevation: Tensor,  # [B], degrees
    azimuth: Tensor,  # [B], degrees
    camera_distances: Tensor,  # [B]
    num_steps: int = 50,
) -> dict[str, Any]:
    """The pictures that threestudio's systems save, each [B, H, W, 3] in [0, 1], with their labels.

    imgs_noisy: the noisy latents decoded; imgs_1step: after one step of `num_steps`; imgs_1orig: the clean sample
    that the first answer implies; imgs_final: where the descent ends. noise_levels: t / T, [B].
    """
    alphas_cumprod = teacher.alphas_cumprod
    epsilon = guided_noise(noisy, timesteps)
    stride = max(teacher.num_timesteps // num_steps, 1)
    latents = {
        "imgs_noisy": noisy,
        "imgs_1step": ddim_step(noisy, epsilon, timesteps, timesteps - stride, alphas_cumprod),
        "imgs_1orig": remove_noise(noisy, epsilon, timesteps, alphas_cumprod),
        "imgs_final": ddim_sample(noisy, timesteps, guided_noise, alphas_cumprod, num_steps),
    }
    pictures = {name: as_pictures(teacher.decode(value)) for name, value in latents.items()}
    levels = (timesteps / teacher.num_timesteps).tolist()
    texts: list[str] = [
        f"n{level:.02f}\ne{ele:.01f}\na{azi:.01f}\nc{dist:.02f}"
        for level, ele, azi, dist in zip(
            levels, elevation.tolist(), azimuth.tolist(), camera_distances.tolist()
        )
    ]
    return {"bs": noisy.shape[0], "noise_levels": levels, "texts": texts, **pictures}


def as_pictures(images: Tensor) -> Tensor:
    """[B, 3, H, W] in [-1, 1] -> [B, H, W, 3] in [0, 1]."""
    return (images * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float()
