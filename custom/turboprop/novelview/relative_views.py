"""Views that a novel-view model draws around a picture, and their silhouettes: what an elevation is estimated from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .elevation_estimate import RelativeViews
from .sampling import sample_latents
from .teacher import NovelViewTeacher

# Rings at the picture's height, above and below it, a view each eighth turn; the picture itself is not drawn anew.
# Models are trained from about -10 to 60 degrees, so that the lower ring stays nearer.
RINGS = (0.0, 20.0, -15.0)  # degrees above the picture
TURNS = tuple(45.0 * step for step in range(8))  # degrees
OFFSETS = tuple((raised, turned) for raised in RINGS for turned in TURNS)[1:]
SILHOUETTE_SIZE = 32  # pixels
# How far a colour is from the background's, in its farthest channel, where a silhouette begins and where it is whole:
# drawn backgrounds are uneven by about 0.04, and white objects differ from them by little more.
BEGINS, WHOLE = 0.05, 0.12


@dataclass(frozen=True)
class DrawingOptions:
    """How views are drawn. Outlines need few steps."""

    num_steps: int = 8  # DDIM
    guidance_scale: float = 2.0
    seed: int = 0
    batch_size: int = 8  # views at once


@torch.no_grad()
def draw_around(
    teacher: NovelViewTeacher,
    picture: Tensor,  # [3, S, S] in [0, 1], on white
    distance: float,  # of all cameras; the model is told that it does not change
    options: DrawingOptions,
) -> Tensor:
    """The views at OFFSETS from the picture: [V - 1, 3, S, S] in [0, 1], on the CPU.

    The model is asked for an angle above the picture alone; its own elevation is given as 0, which only a model with
    `fourth_number` input_polar_angle would see. Draws from no global generator.
    """
    raised, turned = torch.tensor(OFFSETS, device=teacher.device).unbind(-1)
    shape = (len(OFFSETS), teacher.latent_channels, teacher.latent_size, teacher.latent_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(options.seed)).to(teacher.device)
    image = picture[None].to(teacher.device)
    drawn = []
    for start in range(0, len(OFFSETS), options.batch_size):
        part = slice(start, start + options.batch_size)
        distances = torch.full_like(raised[part], distance)
        condition = teacher.condition(image, 0.0, 0.0, distance, raised[part], turned[part], distances)
        latents = sample_latents(
            teacher.predict_noise,
            teacher.alphas_cumprod,
            condition,
            noise[part],
            options.num_steps,
            options.guidance_scale,
            eta=0.0,
            step_noise=lambda step, like=noise[part]: torch.zeros_like(like),
        )
        drawn.append(teacher.model.decode(latents).cpu())
    return torch.cat(drawn)


def silhouettes_on_plain(pictures: Tensor) -> Tensor:  # [B, 3, S, S] in [0, 1]
    """Where pictures differ from their background, the median colour of their outermost pixels: [B, S, S] in [0, 1]."""
    rims = (pictures[:, :, 0], pictures[:, :, -1], pictures[:, :, :, 0], pictures[:, :, :, -1])
    background = torch.cat(rims, dim=-1).median(dim=-1).values  # [B, 3]
    difference = (pictures - background[..., None, None]).abs().amax(dim=1)
    return ((difference - BEGINS) / (WHOLE - BEGINS)).clamp(0, 1)


def drawn_relative_views(
    teacher: NovelViewTeacher,
    rgba: Tensor,  # [S, S, 4], straight alpha in [0, 1], framed as the model needs it
    distance: float,  # world units
    fovy_deg: float,  # degrees
    options: DrawingOptions | None = None,
) -> tuple[RelativeViews, Tensor]:
    """The silhouettes of a picture and of views drawn around it; and all of these pictures [V, 3, S, S], on white."""
    alpha = rgba[..., 3]
    picture = (rgba[..., :3] * alpha[..., None] + 1 - alpha[..., None]).permute(2, 0, 1)
    drawn = draw_around(teacher, picture, distance, options or DrawingOptions())
    silhouettes = torch.cat([_small(alpha[None]), _small(silhouettes_on_plain(drawn))])
    raised, turned = torch.tensor([(0.0, 0.0), *OFFSETS]).unbind(-1)
    views = RelativeViews(silhouettes, raised, turned, distance, math.radians(fovy_deg))
    own = F.interpolate(picture[None], drawn.shape[-2:], mode="bilinear", antialias=True)
    return views, torch.cat([own, drawn])


def _small(silhouettes: Tensor) -> Tensor:  # [B, S, S]
    """At the size in which silhouettes are compared."""
    size = (SILHOUETTE_SIZE, SILHOUETTE_SIZE)
    return F.interpolate(silhouettes[:, None], size, mode="bilinear", antialias=True)[:, 0].clamp(0, 1)
