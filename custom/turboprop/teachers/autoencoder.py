"""Pictures to latents and back, with a latent diffusion model's autoencoder. Pictures are in [-1, 1]."""

from typing import Any

import torch
from torch import Tensor

from threestudio.utils.errors import UserError

from .contract import ConditionT, Teacher
from .noise_schedule import check_prediction_type


def encode_latents(
    vae: Any,  # AutoencoderKL
    images: Tensor,  # [B, 3, H, W]
    noise: Tensor,  # [B, C, h, w]
) -> Tensor:
    """A sample of the posterior, in the unit that the diffusion runs in: [B, C, h, w] in the type of `images`."""
    with torch.autocast(images.device.type, enabled=False):
        posterior = vae.encode(images.to(vae.dtype)).latent_dist
        latents = posterior.mean + posterior.std * noise.to(posterior.mean)
    return (latents * vae.config.scaling_factor).to(images.dtype)


def decode_latents(vae: Any, latents: Tensor) -> Tensor:  # [B, C, h, w] -> [B, 3, H, W]
    """Pictures of latents, in the type of `latents`."""
    with torch.autocast(latents.device.type, enabled=False):
        images = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample
    return images.to(latents.dtype)


def posterior_noise(vae: Any, images: Tensor) -> Tensor:  # [B, 3, H, W]
    """What `encode_latents` needs, from torch's global generator: [B, C, h, w]."""
    factor = downsampling(vae)
    height, width = (side // factor for side in images.shape[-2:])
    shape = (images.shape[0], vae.config.latent_channels, height, width)
    return torch.randn(shape, dtype=vae.dtype, device=images.device)


def downsampling(vae: Any) -> int:
    """Pixels along the side of a latent."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


class LatentTeacher(Teacher[ConditionT]):
    """A teacher of the latents of an AutoencoderKL, which is `vae`."""

    vae: Any

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        return encode_latents(self.vae, images, self.encoding_noise(images) if noise is None else noise)

    def encoding_noise(self, images: Tensor) -> Tensor:
        return posterior_noise(self.vae, images)

    def decode(self, latents: Tensor) -> Tensor:
        return decode_latents(self.vae, latents)


class TextToImageTeacher(LatentTeacher[ConditionT]):
    """What the text-to-image models in latents share: parts that fit together, frozen. Raises ValueError for an unknown
    prediction type, or a denoiser of other channels than the autoencoder has."""

    def __init__(
        self,
        unet_config: Any,  # of the denoiser
        vae: Any,  # AutoencoderKL
        alphas_cumprod: Tensor,  # [T]
        prediction_type: str,
    ) -> None:
        check_prediction_type(prediction_type)
        if unet_config.in_channels != vae.config.latent_channels:
            raise UserError(
                f"the unet takes {unet_config.in_channels} channels, the vae's latents have "
                f"{vae.config.latent_channels}: not a text-to-image model"
            )
        self.vae = vae.eval().requires_grad_(False)
        self.alphas_cumprod = alphas_cumprod.to(device=next(vae.parameters()).device, dtype=torch.float32)
        self.prediction_type = prediction_type
        self.latent_channels = vae.config.latent_channels
