"""The Stable Diffusion family as a teacher, from a folder in diffusers' layout, at any size."""

from typing import Any

import torch
from torch import Tensor

from threestudio.utils.errors import UserError

from .autoencoder import decode_latents, downsampling, encode_latents, posterior_noise
from .contract import Teacher, TextCondition
from .loading import LoadingOptions, load_denoiser, load_part
from .noise_schedule import PREDICTION_TYPES, to_epsilon
from .weights import DENOISER_PARTS, model_folder, weight_variant


class LatentDiffusionTeacher(Teacher[TextCondition]):
    """A text-conditioned latent diffusion model: UNet2DConditionModel, AutoencoderKL and a scheduler's schedule.

    Args:
        unet: the denoiser; its `sample_size` gives the latents' side.
        vae: the autoencoder; its depth gives the images' side.
        alphas_cumprod: [T].
        prediction_type: what the denoiser predicts: epsilon, v_prediction or sample.

    Raises:
        ValueError: a denoiser that is not one of this family, or that does not fit the autoencoder.
    """

    def __init__(self, unet: Any, vae: Any, alphas_cumprod: Tensor, prediction_type: str) -> None:
        if prediction_type not in PREDICTION_TYPES:
            raise UserError(f"prediction_type: expected one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}")
        if unet.config.in_channels != vae.config.latent_channels:
            raise UserError(
                f"the unet takes {unet.config.in_channels} channels, the vae's latents have "
                f"{vae.config.latent_channels}: not a text-to-image model"
            )
        if unet.config.addition_embed_type is not None or unet.config.class_embed_type is not None:
            raise UserError("the unet needs conditions besides the prompt (as SDXL's does): not a model of this family")
        self.unet = unet.eval().requires_grad_(False)
        self.vae = vae.eval().requires_grad_(False)
        self.alphas_cumprod = alphas_cumprod.to(device=next(vae.parameters()).device, dtype=torch.float32)
        self.prediction_type = prediction_type
        self.latent_channels = vae.config.latent_channels
        self.latent_size = unet.config.sample_size
        self.image_size = self.latent_size * downsampling(vae)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str,  # a folder in diffusers' layout or a hub id
        device: torch.device | str = "cpu",
        half_precision_weights: bool = False,  # float16 weights and compute; on a CPU always float32
        enable_attention_slicing: bool = False,  # less memory, slower
        enable_channels_last_format: bool = False,
        enable_sequential_cpu_offload: bool = False,  # the unet's weights stay on the CPU between uses
    ) -> "LatentDiffusionTeacher":
        """Loads a teacher. The text encoder is not part of it.

        Raises:
            FileNotFoundError, ValueError: as `weights.model_folder`; or a part that does not load.
        """
        from diffusers import AutoencoderKL

        device = torch.device(device)
        options = LoadingOptions(
            half_precision_weights,
            enable_attention_slicing,
            enable_channels_last_format,
            enable_sequential_cpu_offload,
        )
        folder = model_folder(pretrained_model_name_or_path, DENOISER_PARTS)
        denoiser = load_denoiser(str(folder), device, options)
        variant = weight_variant(folder, "vae")
        vae = load_part(AutoencoderKL, folder, "vae", torch_dtype=options.dtype(device), variant=variant)
        return cls(denoiser.unet, vae.to(device), denoiser.alphas_cumprod, denoiser.prediction_type)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        return encode_latents(self.vae, images, self.encoding_noise(images) if noise is None else noise)

    def encoding_noise(self, images: Tensor) -> Tensor:
        return posterior_noise(self.vae, images)

    def decode(self, latents: Tensor) -> Tensor:
        return decode_latents(self.vae, latents)

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
