"""Score Distillation via Inversion: the noise of a step is not drawn but found, by DDIM inversion of the render.

Lukoianov et al. 2024, "Score Distillation via Reparametrized DDIM" (arXiv 2405.15891).
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..teachers.noise_schedule import remove_noise, signal_and_noise_level
from ..teachers.sampling import GuidedNoise
from .methods import Distillation, Query, guided_noise, norms


@torch.no_grad()
def ddim_inversion(
    latents: Tensor,  # [B, C, h, w], clean
    until: Tensor,  # [B], the timesteps to arrive at
    guided_noise: GuidedNoise,
    alphas_cumprod: Tensor,  # [T]
    num_steps: int,  # of a whole ascent to T; an earlier end takes its share
    eta: float = 0.0,  # how much fresh noise a step adds: 1 is that of DDPM's posterior
) -> Tensor:
    """Follows the teacher from clean latents up to noisy ones. Returns [B, C, h, w], at `until`.

    The steps are those of DDIM (Song et al. 2020, arXiv 2010.02502, equation 12) backwards. The noise of a step's start
    stands for that of its end, so the error falls with the number of steps. Draws from torch's global generator if
    `eta` > 0.
    """
    stride = max(alphas_cumprod.shape[0] // num_steps, 1)
    noisy, current = latents, torch.full_like(until, -1)  # -1 is clean, before the schedule's first level
    target = torch.full_like(until, stride)
    while bool((current < until).any()):
        later = torch.minimum(target, until)
        epsilon = guided_noise(noisy, current.clamp(min=0))
        stepped = inversion_step(noisy, epsilon, current, later, alphas_cumprod)
        if eta > 0:
            stepped = stepped + eta * posterior_std(current, later, alphas_cumprod) * torch.randn_like(stepped)
        running = (current < until).view(-1, *[1] * (noisy.ndim - 1))
        noisy = torch.where(running, stepped.to(noisy.dtype), noisy)
        current, target = later, target + stride
    return noisy


def inversion_step(
    noisy: Tensor,  # [B, C, h, w], at `timesteps`
    epsilon: Tensor,  # [B, C, h, w]
    timesteps: Tensor,  # [B]; below 0 means clean
    later: Tensor,  # [B], >= timesteps and >= 0
    alphas_cumprod: Tensor,  # [T]
) -> Tensor:
    """One deterministic step away from clean, along `epsilon`. Returns [B, C, h, w]."""
    started = (timesteps >= 0).view(-1, *[1] * (noisy.ndim - 1))
    clean = remove_noise(noisy, epsilon, timesteps.clamp(min=0), alphas_cumprod)
    signal, level = signal_and_noise_level(alphas_cumprod, later, noisy.ndim)
    return (signal * torch.where(started, clean, noisy) + level * epsilon).to(noisy.dtype)


def posterior_std(
    earlier: Tensor,  # [B]; below 0 means clean
    later: Tensor,  # [B]
    alphas_cumprod: Tensor,  # [T]
) -> Tensor:
    """DDPM's posterior standard deviation between two levels (DDIM, equation 16, eta = 1). Returns [B, 1, 1, 1]."""
    before = torch.where(earlier >= 0, alphas_cumprod[earlier.clamp(min=0)], 1.0)
    after = alphas_cumprod[later]
    variance = (1.0 - before) / (1.0 - after) * (1.0 - after / before)
    return variance.clamp(min=0.0).sqrt().view(-1, 1, 1, 1)


def sdi_gradient(
    query: Query,  # its noise is used only where none is found; its shifted timesteps are where it is found
    *,
    invert: bool = True,  # false: the noise is the one given, as in SDS
    inversion_guidance_scale: float = -6.5,  # in the form where 1 is the conditional
    inversion_n_steps: int = 10,  # of a whole inversion
    inversion_eta: float = 0.3,
) -> Distillation:
    """z - z_hat, z_hat being the guided clean latents of z at t under the noise that inverting z finds.

    The paper's loss |z - z_hat|^2 / 2 with z_hat held (its algorithm 1). It is SDS's gradient times a_t / s_t, with the
    found noise in the place of the random one.
    """
    if invert:
        latents, until, schedule = query.latents, query.shifted_timesteps, query.teacher.alphas_cumprod
        guided = partial(guided_noise, query.teacher, query.conditions, inversion_guidance_scale)
        inverted = ddim_inversion(latents, until, guided, schedule, inversion_n_steps, inversion_eta)
        signal, level = signal_and_noise_level(schedule, until)
        query = replace(query, noise=((inverted - signal * latents) / level).to(latents.dtype))
    scores = query.ask()
    gradient = query.latents - query.clean(scores.noisy, scores.first)
    return Distillation(gradient, scores.first, norms(scores, gradient), scores.noisy)
