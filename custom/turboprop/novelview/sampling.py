"""New views from noise: DDIM with classifier-free guidance."""

from collections.abc import Callable

import torch
from torch import Tensor

from threestudio.utils.errors import UserError

from ..teachers.noise_schedule import remove_noise
from .condition import NovelViewCondition

PredictNoise = Callable[[Tensor, Tensor, NovelViewCondition], Tensor]  # noisy [B, C, h, w], timesteps [B], condition


def sampling_timesteps(num_timesteps: int, num_steps: int) -> list[int]:
    """Evenly spaced timesteps from T - 1 downwards ("trailing", Lin et al. 2024, arXiv 2305.08891, section 3.3).

    They begin where the picture is nearest to noise, which the first step is given. Raises ValueError for a number of
    steps outside of 1 to T.
    """
    if not 1 <= num_steps <= num_timesteps:
        raise UserError(f"num_steps: expected 1 to {num_timesteps}, got {num_steps}")
    return [round(num_timesteps * (1.0 - step / num_steps)) - 1 for step in range(num_steps)]


@torch.no_grad()
def sample_latents(
    predict_noise: PredictNoise,
    alphas_cumprod: Tensor,  # [T]
    condition: NovelViewCondition,  # of B samples
    noise: Tensor,  # [B, C, h, w], where sampling starts
    num_steps: int = 50,
    guidance_scale: float = 3.0,  # 1: the null condition is not asked
    eta: float = 1.0,  # 0: deterministic; 1: as noisy as DDPM, which zero-1-to-3 uses
    step_noise: Callable[[int], Tensor] | None = None,  # [B, C, h, w] of step 0, 1, ...; None: torch's generator
) -> Tensor:
    """Latents of the views that the condition asks for. Returns [B, C, h, w], in the unit that the diffusion runs in.

    Song et al. 2021, DDIM (arXiv 2010.02502), equations 12 and 16; guidance as Ho and Salimans 2022 (arXiv 2207.12598):
    eps = eps_null + scale (eps_condition - eps_null).
    """
    both = condition if guidance_scale == 1.0 else condition.without_image().cat([condition])
    steps = sampling_timesteps(len(alphas_cumprod), num_steps)
    latents = noise
    for position, timestep in enumerate(steps):
        times = torch.full((len(noise),), timestep, device=noise.device)
        if guidance_scale == 1.0:
            epsilon = predict_noise(latents, times, both)
        else:
            null, conditioned = predict_noise(latents.repeat(2, 1, 1, 1), times.repeat(2), both).chunk(2)
            epsilon = null + guidance_scale * (conditioned - null)
        clean = remove_noise(latents, epsilon, times, alphas_cumprod)
        if position + 1 == len(steps):
            break
        now, later = alphas_cumprod[timestep], alphas_cumprod[steps[position + 1]]
        sigma = eta * ((1 - later) / (1 - now) * (1 - now / later)).sqrt()
        fresh = torch.randn_like(noise) if step_noise is None else step_noise(position)
        latents = later.sqrt() * clean + (1 - later - sigma**2).clamp(min=0).sqrt() * epsilon + sigma * fresh
    return clean
