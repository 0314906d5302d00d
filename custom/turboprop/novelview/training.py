"""One training step of a novel-view model, and its loss at fixed timesteps: functions of a model and a batch."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..teachers.noise_schedule import add_noise, prediction_target
from .augmentation import PhotometricAugmentation, changed_photometry
from .camera_pose import relative_pose
from .condition import NovelViewCondition, draw_condition_dropout
from .model import EncodedView, NovelViewModel
from .timestep_sampling import TimestepSampling, min_snr_weight, timesteps_of


@dataclass(frozen=True)
class TrainingRule:
    """How a step draws and weighs."""

    timesteps: TimestepSampling
    condition_dropout: float = 0.05  # see condition.draw_condition_dropout
    photometric: PhotometricAugmentation | None = None  # None: the encoders see the picture as it is
    min_snr_gamma: float = 0.0  # 0: every timestep counts the same


def pose_of_batch(batch: dict[str, Any], fourth_number: str) -> Tensor:
    """The relative camera of a batch with target_camera and input_camera [B, 3] (degrees, degrees, units): [B, 4]."""
    return relative_pose(*batch["target_camera"].unbind(-1), *batch["input_camera"].unbind(-1), fourth_number)


def clean_latents(model: NovelViewModel, batch: dict[str, Any], sampled: bool) -> tuple[Tensor, Tensor]:
    """Latents of the views to draw and of the input views.

    Those to draw are scaled; if `sampled`, they are drawn from their posterior, else its mean. They come from the
    batch's cached moments [B, 2, C, h, w], or from its pictures. Returns [B, C, h, w] twice.
    """
    if "target_moments" in batch:
        mean, std = batch["target_moments"].unbind(1)
        given = model.input_latents(batch["input_moments"][:, 0])
    else:
        mean, std = model.latent_moments(batch["target_image"])
        given = model.encode_input_latents(batch["input_image"])
    target = mean + std * torch.randn_like(mean) if sampled else mean
    return target * model.vae.config.scaling_factor, given


def encoded_view(model: NovelViewModel, batch: dict[str, Any], given: Tensor, rule: TrainingRule | None) -> EncodedView:
    """What the frozen parts say about the batch's input views, whose latents are `given` [B, C, h, w]."""
    images = batch["input_image"]
    seen = None
    if rule is not None and rule.photometric is not None:
        seen = changed_photometry(images, torch.rand(len(images), 5, device=images.device), rule.photometric)
    return model.encode_view(images, given, seen)


def training_loss(model: NovelViewModel, batch: dict[str, Any], rule: TrainingRule) -> tuple[Tensor, dict[str, Tensor]]:
    """The denoising loss (Ho et al. 2020, equation 14) of a batch, and figures [] to log.

    Draws come from the global generators. Efficient-3DiM (arXiv 2310.03015), equations 1 and 2: w(t) = 1, unless
    min-SNR is asked for.
    """
    clean, given = clean_latents(model, batch, sampled=True)
    count, device = len(clean), clean.device
    timesteps = timesteps_of(torch.rand(count, device=device), len(model.alphas_cumprod), rule.timesteps)
    dropout = draw_condition_dropout(torch.rand(count, device=device), rule.condition_dropout)
    view = encoded_view(model, batch, given, rule)
    condition = model.condition(view, pose_of_batch(batch, model.settings.fourth_number), dropout)
    errors = denoising_errors(model, clean, condition, timesteps, torch.randn_like(clean))
    weighted = errors
    if rule.min_snr_gamma > 0:
        weighted = errors * min_snr_weight(model.alphas_cumprod, timesteps, model.prediction_type, rule.min_snr_gamma)
    return weighted.mean(), {"mse": errors.detach().mean(), "mean_timestep": timesteps.float().mean()}


def denoising_errors(
    model: NovelViewModel,
    clean: Tensor,  # [B, C, h, w]
    condition: NovelViewCondition,  # of B samples
    timesteps: Tensor,  # [B]
    noise: Tensor,  # [B, C, h, w]
) -> Tensor:
    """The mean squared error of each sample in the network's own prediction type: [B], float32."""
    noisy = add_noise(clean, noise, timesteps, model.alphas_cumprod)
    target = prediction_target(clean, noise, timesteps, model.alphas_cumprod, model.prediction_type)
    prediction = model(noisy, timesteps, condition)
    return F.mse_loss(prediction.float(), target.float(), reduction="none").mean(dim=(1, 2, 3))


@torch.no_grad()
def loss_by_bin(model: NovelViewModel, batch: dict[str, Any], bins: int) -> Tensor:
    """The unweighted loss in the middle of each of `bins` equal ranges of timesteps: [bins].

    Samplers of training timesteps can be compared by it, as they cannot by their own training losses. Everything is
    conditioned; noise comes from the global generators.
    """
    clean, given = clean_latents(model, batch, sampled=False)
    view = encoded_view(model, batch, given, None)
    condition = model.condition(view, pose_of_batch(batch, model.settings.fourth_number))
    losses = []
    for place in range(bins):
        timestep = int((place + 0.5) * len(model.alphas_cumprod) / bins)
        times = torch.full((len(clean),), timestep, device=clean.device)
        losses.append(denoising_errors(model, clean, condition, times, torch.randn_like(clean)).mean())
    return torch.stack(losses)
