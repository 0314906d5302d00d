"""What a step rendered and from where, as a teacher takes it."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from threestudio.utils.errors import UserError

from ..teachers.contract import Cameras, Teacher
from .methods import Conditions, Negatives


@dataclass(frozen=True)
class Renders:
    """Renders at a teacher's sizes."""

    images: Tensor | None  # [B, 3, S, S] in [0, 1], with a graph; None where latents were rendered
    latents: Tensor  # [B, C, h, w], with a graph


def renders_for(
    teacher: Teacher,
    rgb: Tensor,  # [B, H, W, 3] in [0, 1], or latents [B, h, w, C]
    rgb_as_latents: bool,
) -> Renders:
    """Renders, resized and encoded. Raises UserError for latents of another number of channels than the teacher's."""
    if not rgb_as_latents:
        images = _resized(rgb, teacher.image_size)
        return Renders(images, teacher.encode(images * 2.0 - 1.0))
    if rgb.shape[-1] != teacher.latent_channels:
        raise UserError(f"rgb_as_latents: expected latents of {teacher.latent_channels} channels, got {rgb.shape[-1]}")
    return Renders(None, _resized(rgb, teacher.latent_size))


def _resized(rgb: Tensor, size: int) -> Tensor:
    """[B, H, W, C] -> [B, C, size, size], bilinear, in float32 where a renderer's autocast gave less."""
    values = rgb.permute(0, 3, 1, 2).to(torch.promote_types(rgb.dtype, torch.float32))
    return F.interpolate(values, (size, size), mode="bilinear", align_corners=False)


def text_conditions(
    teacher: Teacher,
    prompt_utils: Any,  # a prompt processor's answer
    cameras: Cameras,  # of B samples
    *,
    n_view: int = 1,  # samples of a set
    view_dependent: bool = True,  # texts say where the camera stands
    perp_neg: float = 0.0,  # factor on perp-neg's strengths, at most 0; 0 turns it off
) -> Conditions:
    """What a teacher is asked about B cameras: their prompt, and nothing. Raises UserError where perp-neg is to
    see sets of views."""
    angles = (cameras.elevation, cameras.azimuth, cameras.distance, view_dependent)
    if not prompt_utils.use_perp_neg or perp_neg == 0:
        positive, unconditional = prompt_utils.get_text_embeddings(*angles).chunk(2)
        return Conditions(
            teacher.condition(positive, cameras, n_view), teacher.condition(unconditional, cameras, n_view)
        )
    if n_view != 1:
        raise UserError(f"n_view: perp-neg works on single views, expected 1, got {n_view}")
    embeddings, weights = prompt_utils.get_text_embeddings_perp_neg(*angles)
    batch_size = cameras.elevation.shape[0]
    positive, unconditional, negatives = embeddings.split([batch_size, batch_size, len(embeddings) - 2 * batch_size])
    pushed = teacher.condition(negatives, cameras.repeat_interleave(len(negatives) // batch_size))
    return Conditions(
        teacher.condition(positive, cameras, n_view),
        teacher.condition(unconditional, cameras, n_view),
        # prompt_utils gives -f, the strengths that push away; guidance_perp_neg is -1 at full strength
        Negatives(pushed, -perp_neg * weights),
    )
