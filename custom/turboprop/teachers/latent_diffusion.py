"""The Stable Diffusion family as a teacher, from a folder in diffusers' layout, at any size."""

from typing import Any

import torch
from torch import Tensor

from threestudio.utils.errors import UserError

from .autoencoder import TextToImageTeacher, downsampling
from .contract import TextCondition
from .loading import DEFAULT_OPTIONS, LoadingOptions, load_denoiser, load_part, sample_side
from .noise_schedule import to_epsilon
from .weights import DENOISER_PARTS, model_folder, weight_variant


class LatentDiffusionTeacher(TextToImageTeacher[TextCondition]):
    """A text-conditioned latent diffusion model: UNet2DConditionModel, AutoencoderKL and a scheduler's schedule.

    Args:
        unet: the denoiser; its `sample_size` gives the latents' side.
        vae: the autoencoder; its depth gives the images' side.
        alphas_cumprod: [T].
        prediction_type: what the denoiser predicts: epsilon, v_prediction or sample.
    Raises ValueError for a denoiser that is not one of this family, or that does not fit the autoencoder.
    """

    def __init__(self, unet: Any, vae: Any, alphas_cumprod: Tensor, prediction_type: str) -> None:
        super().__init__(unet.config, vae, alphas_cumprod, prediction_type)
        if unet.config.addition_embed_type is not None or unet.config.class_embed_type is not None:
            raise UserError("the unet needs conditions besides the prompt (as SDXL's does): not a model of this family")
        self.unet = unet.eval().requires_grad_(False)
        self.latent_size = sample_side(unet.config)
        self.image_size = self.latent_size * downsampling(vae)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str,  # a folder in diffusers' layout or a hub id
        device: torch.device | str = "cpu",
        options: LoadingOptions = DEFAULT_OPTIONS,
    ) -> "LatentDiffusionTeacher":
        """Loads a teacher. The text encoder is not part of it. Raises as `weights.model_folder`, and ValueError for a
        part that does not load."""
        from diffusers import AutoencoderKL

        device = torch.device(device)
        folder = model_folder(pretrained_model_name_or_path, DENOISER_PARTS)
        denoiser = load_denoiser(str(folder), device, options)
        variant = weight_variant(folder, "vae")
        vae = load_part(AutoencoderKL, folder, "vae", torch_dtype=options.dtype(device), variant=variant)
        return cls(denoiser.unet, vae.to(device), denoiser.alphas_cumprod, denoiser.prediction_type)

    @torch.no_grad()
    def predict_noise(self, noisy: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
        dtype = self.unet.dtype
        with torch.autocast(self.device.type, enabled=False):
            prediction = self.unet(
                noisy.to(dtype),
                timesteps,
                encoder_hidden_states=condition.embeddings.to(device=noisy.device, dtype=dtype),
            ).sample
        return to_epsilon(prediction.to(noisy.dtype), noisy, timesteps, self.alphas_cumprod, self.prediction_type)
