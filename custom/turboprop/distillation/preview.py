"""What the teacher makes of noisy latents, as pictures: for looking at a guidance while it trains."""

from typing import Any

import torch
from torch import Tensor

from ..teachers.contract import Teacher
from ..teachers.noise_schedule import remove_noise
from ..teachers.sampling import GuidedNoise, ddim_sample, ddim_step


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
        for level, ele, azi, dist in zip(levels, elevation.tolist(), azimuth.tolist(), camera_distances.tolist())
    ]
    return {"bs": noisy.shape[0], "noise_levels": levels, "texts": texts, **pictures}


def as_pictures(images: Tensor) -> Tensor:
    """[B, 3, H, W] in [-1, 1] -> [B, H, W, 3] in [0, 1]."""
    return (images * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float()
