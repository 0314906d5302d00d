"""A guided step at Stable Diffusion 2.1's size with random weights, beside its bare UNet and autoencoder.

The bare step is what no guidance can do without: the pictures' encoding, one pass of the UNet over both conditions, and
the encoder's backward pass. Time does not depend on weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from turboprop.teachers.latent_diffusion import LatentDiffusionTeacher
from turboprop.teachers.noise_schedule import scaled_linear_alphas_cumprod

import threestudio
from benchmarks.gpu_parts.shared import Row, Setting, guarded, median_seconds
from benchmarks.picard_batched import SD21_UNET, SD21_VAE

TINY_UNET = {
    "sample_size": 8, "block_out_channels": (32, 64), "attention_head_dim": 8, "cross_attention_dim": 16,
    "layers_per_block": 1, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
TINY_VAE = {
    "block_out_channels": (32, 32), "latent_channels": 4, "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip
TOKENS, BATCHES = 77, (1, 2, 4, 8)


@lru_cache(maxsize=1)
def random_teacher(tiny: bool, device: torch.device) -> LatentDiffusionTeacher:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    dtype = torch.float16 if device.type == "cuda" else torch.float32
    with device, torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**(TINY_UNET if tiny else SD21_UNET))
        vae = AutoencoderKL(**(TINY_VAE if tiny else SD21_VAE))
    schedule = scaled_linear_alphas_cumprod().to(device)
    return LatentDiffusionTeacher(unet.to(dtype), vae.to(dtype), schedule, "epsilon")


class RandomPrompts:
    """Embeddings for any view: [2B, tokens, width], positive ones first."""

    use_perp_neg = False

    def __init__(self, width: int, device: torch.device) -> None:
        self.embeddings = torch.randn(2, TOKENS, width, generator=torch.Generator().manual_seed(0)).to(device)

    def get_text_embeddings(self, elevation: torch.Tensor, *others: Any) -> torch.Tensor:
        return self.embeddings.repeat_interleave(elevation.shape[0], 0)


def guided(teacher: LatentDiffusionTeacher, rgb: torch.Tensor, angles: torch.Tensor) -> Any:
    config = {"method": "sds", "guidance_scale": 7.5}
    guidance = threestudio.find("turboprop-guidance")(config, teacher=teacher)
    prompts = RandomPrompts(teacher.unet.config.cross_attention_dim, rgb.device)

    def step() -> None:
        out = guidance(rgb, prompts, elevation=angles, azimuth=angles, camera_distances=angles, rgb_as_latents=False)
        torch.autograd.grad(out["loss_sds"], rgb)

    return step


def bare(teacher: LatentDiffusionTeacher, rgb: torch.Tensor) -> Any:
    """The step's networks alone, at the sizes and in the types that the guidance gives them."""
    unet, vae, batch, size = teacher.unet, teacher.vae, rgb.shape[0], teacher.image_size
    pictures = torch.nn.functional.interpolate(rgb.detach().permute(0, 3, 1, 2), (size, size), mode="bilinear")
    pictures = pictures.to(vae.dtype).requires_grad_()
    text = torch.randn(2 * batch, TOKENS, unet.config.cross_attention_dim, device=rgb.device, dtype=unet.dtype)
    timesteps = torch.full((2 * batch,), 500, device=rgb.device)

    def step() -> None:
        latents = vae.encode(pictures).latent_dist.mean
        with torch.no_grad():
            noise = unet(latents.detach().repeat(2, 1, 1, 1), timesteps, encoder_hidden_states=text).sample
        torch.autograd.grad(latents, pictures, noise[:batch])

    return step


def measured(setting: Setting, batch: int) -> dict[str, Any]:
    device, repeats = setting.device, 1 if setting.tiny else 8
    teacher = random_teacher(setting.tiny, device)
    rgb = torch.rand(batch, 64, 64, 3, device=device).requires_grad_()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    alone = median_seconds(bare(teacher, rgb), device, repeats)
    figures: dict[str, Any] = {"bare (ms)": 1e3 * alone}
    whole = median_seconds(guided(teacher, rgb, torch.ones(batch, device=device)), device, repeats)
    figures |= {"guided (ms)": 1e3 * whole, "guided / bare": whole / alone, "pictures/s": batch / whole}
    if device.type == "cuda":
        figures["memory (GiB)"] = torch.cuda.max_memory_allocated() / 2**30
    return figures


def rows(setting: Setting) -> Iterator[Row]:
    for batch in BATCHES[:2] if setting.tiny else BATCHES:
        yield guarded(f"batch {batch}", setting, lambda batch=batch: measured(setting, batch))
