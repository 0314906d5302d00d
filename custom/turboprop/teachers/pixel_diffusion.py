"""Pixel-space diffusion models as teachers: DeepFloyd IF's first stage, from a folder in diffusers' layout."""

from typing import Any

import torch
from torch import Tensor

from threestudio.utils.errors import UserError

from .contract import Teacher, TextCondition
from .loading import DEFAULT_OPTIONS, LoadingOptions, load_denoiser, sample_side
from .noise_schedule import check_prediction_type, to_epsilon


class PixelDiffusionTeacher(Teacher[TextCondition]):
    """A text-conditioned UNet2DConditionModel over RGB images of its `sample_size`; latents are the images themselves.

    Args:
        unet: the denoiser, of 3 channels; it may answer 6, whose last 3 are a learned variance and are left out.
        alphas_cumprod: [T].
        prediction_type: what the first 3 channels of the answer are: epsilon, v_prediction or sample.
    Raises ValueError for a denoiser that is not one of this family, such as a super-resolution stage.
    """

    def __init__(self, unet: Any, alphas_cumprod: Tensor, prediction_type: str) -> None:
        check_prediction_type(prediction_type)
        config = unet.config
        if config.in_channels != 3 or config.out_channels not in (3, 6):
            raise UserError(
                f"the unet takes {config.in_channels} channels and answers {config.out_channels}; "
                "expected a pixel-space model of 3 and 3, or 3 and 6 (a super-resolution stage takes 6)"
            )
        # "text" adds a pooled prompt, which the network takes from the same embeddings
        if config.class_embed_type is not None or config.addition_embed_type not in (None, "text"):
            raise UserError("the unet needs conditions besides the prompt: not a model of this family")
        self.unet = unet.eval().requires_grad_(False)
        self.alphas_cumprod = alphas_cumprod.to(dtype=torch.float32)
        self.prediction_type = prediction_type
        self.latent_channels = 3
        self.latent_size = self.image_size = sample_side(config)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str,  # a folder in diffusers' layout or a hub id
        device: torch.device | str = "cpu",
        options: LoadingOptions = DEFAULT_OPTIONS,
    ) -> "PixelDiffusionTeacher":
        """Loads a teacher, from its fp16 variant where it has one and half precision is asked for. Raises as
        `weights.model_folder`, and ValueError for a part that does not load."""
        half = options.half_precision_weights
        denoiser = load_denoiser(pretrained_model_name_or_path, device, options, prefer_half=half)
        return cls(denoiser.unet, denoiser.alphas_cumprod, denoiser.prediction_type)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """The images themselves; `noise` has no part in it."""
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    @torch.no_grad()
    def predict_noise(self, noisy: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
        dtype = self.unet.dtype
        with torch.autocast(self.device.type, enabled=False):
            answer = self.unet(
                noisy.to(dtype),
                timesteps,
                encoder_hidden_states=condition.embeddings.to(device=noisy.device, dtype=dtype),
            ).sample
        prediction = answer[:, : self.latent_channels].to(noisy.dtype)
        return to_epsilon(prediction, noisy, timesteps, self.alphas_cumprod, self.prediction_type)
