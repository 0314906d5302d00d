"""A guided step at Stable Diffusion 2.1's size with random weights, beside its bare UNet and autoencoder.

The bare step is what no guidance can do without: the pictures' encoding, one pass of the UNet over both conditions, and
the encoder's backward pass. Time does not depend on weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from turboprop.teachers.latent_diffusion import LatentDiffusionTeacher

import threestudio
from benchmarks.gpu_parts.shared import Row, Setting, guarded
from benchmarks.random_teacher import TOKENS, RandomPrompts, random_teacher
from benchmarks.timing import median_seconds

BATCHES = (1, 2, 4, 8)


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
