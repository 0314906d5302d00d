"""Pictures to latents and back, with a latent diffusion model's autoencoder. Pictures are in [-1, 1]."""

from typing import Any

import torch
from torch import Tensor


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
