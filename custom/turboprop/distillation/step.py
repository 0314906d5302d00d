"""One step of a guidance: what is asked about its renders, and the losses that a method makes of the answer."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from threestudio.utils.errors import UserError

from ..teachers.contract import Cameras, Teacher
from .methods import Conditions, Distillation, Method, Query, guided_noise
from .preview import guidance_pictures
from .renders import Renders
from .schedule import Schedule


@dataclass(frozen=True)
class Distilled:
    """What a step made of the renders."""

    output: dict[str, Any]  # losses and figures, by the names that a system knows
    query: Query
    noisy: Tensor  # [B, C, h, w], at the query's timesteps


def finite_gradient(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient with 0 wherever it is NaN or infinite, and how many such entries there were."""
    finite = torch.isfinite(gradient)
    return torch.where(finite, gradient, 0.0), (~finite).sum().float()


def distillation_loss(
    values: Tensor,  # [B, ...], with a graph
    gradient: Tensor,  # [B, ...]
) -> Tensor:
    """A scalar whose gradient at `values` is `gradient` / B, and whose value is |gradient|^2 / (2 B)."""
    target = (values - gradient).detach()
    return 0.5 * F.mse_loss(values, target, reduction="sum") / values.shape[0]


def drawn_query(
    schedule: Schedule,
    teacher: Teacher,
    latents: Tensor,  # [B, C, h, w]
    conditions: Conditions,
    guidance_scale: float,
    weighting: str,
) -> Query:
    """What a step asks about renders: its timesteps and then its noise are drawn from torch's global generator."""
    timesteps, later = schedule.draw(latents.shape[0])
    noise = torch.randn_like(latents)
    return Query(teacher, latents.detach(), conditions, timesteps, noise, later, guidance_scale, weighting)


def distill(
    name: str,
    method: Method,
    query: Query,  # about the latents of `renders`
    renders: Renders,
    grad_clip: float | None = None,  # largest entry of a gradient
    image_loss: bool = False,
) -> Distilled:
    """The losses of a method.

    The output has loss_<name>, whose gradient at the latents is the method's / B; grad_norm; nan_gradients, the number
    of entries of the gradient that were not finite and were left out; the method's own scalars; and loss_<name>_img
    with `image_loss`.
    """
    with torch.no_grad():
        result = method(query)
        gradient, nan_gradients = finite_gradient(result.gradient)
        gradient = _clipped(gradient, grad_clip)
    output: dict[str, Any] = {
        f"loss_{name}": distillation_loss(renders.latents, gradient),
        "grad_norm": gradient.norm(),
        "nan_gradients": nan_gradients,
        **result.scalars,
    }
    if image_loss:
        output[f"loss_{name}_img"] = _image_loss(renders.images, query, result, grad_clip)
    return Distilled(output, query, result.noisy)


def _clipped(gradient: Tensor, largest: float | None) -> Tensor:
    return gradient if largest is None else gradient.clamp(-largest, largest)


def _image_loss(
    images: Tensor | None,  # [B, 3, H, W] in [0, 1]
    query: Query,
    result: Distillation,
    grad_clip: float | None,
) -> Tensor:
    """HiFA's distance in image space (Zhu and Zhuang 2023, arXiv 2305.18766, equation 9).

    The latent gradient w (eps_hat - eps) is w (a_t / s_t) (z - z_hat), z_hat being the guided clean latents; this is
    the same with images in the latents' place. Where the renders have a score of their own, as in VSD, the clean images
    that it implies stand in the renders' place.
    """
    if images is None:
        raise UserError("use_img_loss: expected rendered images, got latents (rgb_as_latents)")

    def pictured(epsilon: Tensor) -> Tensor:
        return (query.teacher.decode(query.clean(result.noisy, epsilon)) * 0.5 + 0.5).clamp(0, 1)

    with torch.no_grad():
        guided_images = pictured(result.guided_noise)
        own_images = images if result.render_noise is None else pictured(result.render_noise)
        signal, level = query.levels()
        gradient, _ = finite_gradient(query.weights() * signal / level * (own_images - guided_images))
    return distillation_loss(images, _clipped(gradient, grad_clip))


def step_pictures(
    distilled: Distilled,
    cameras: Cameras,  # of B samples
    most: int,  # how many samples are shown, at most: whole sets, one at least
    n_view: int = 1,  # samples of a set
) -> dict[str, Any]:
    """What the teacher makes of a step's noisy latents: see `preview.guidance_pictures`."""
    query = distilled.query
    count = min(max(1, most // n_view) * n_view, distilled.noisy.shape[0])
    guided = partial(guided_noise, query.teacher, query.conditions.take(count), query.guidance_scale)
    shown = (distilled.noisy, query.timesteps, cameras.elevation, cameras.azimuth, cameras.distance)
    noisy, timesteps, elevation, azimuth, distance = (value[:count] for value in shown)
    return guidance_pictures(query.teacher, noisy, timesteps, guided, elevation, azimuth, distance)
