"""A teacher with random weights, of Stable Diffusion 2.1's size or a tiny one, and prompts of its width.

Time does not depend on weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from turboprop.teachers.latent_diffusion import LatentDiffusionTeacher
from turboprop.teachers.noise_schedule import scaled_linear_alphas_cumprod

import threestudio
from threestudio.utils.base import BaseObject

SD21_UNET = {  # stabilityai/stable-diffusion-2-1-base, unet/config.json
    "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024, "use_linear_projection": True,
}  # fmt: skip
SD21_VAE = {  # vae/config.json
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "sample_size": 768,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
TINY_UNET = {
    "sample_size": 8, "block_out_channels": (32, 64), "attention_head_dim": 8, "cross_attention_dim": 16,
    "layers_per_block": 1, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
TINY_VAE = {
    "block_out_channels": (32, 32), "latent_channels": 4, "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip
TOKENS = 77
CONFIG_KEYS = [  # overrides by which a config takes what `register` names
    "system.guidance.teacher_type=benchmark-random-teacher", "system.prompt_processor_type=benchmark-random-prompts",
]  # fmt: skip


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


def register(tiny: bool, device: torch.device) -> None:
    """One teacher for all runs of this process, and prompts of its width, under the names of CONFIG_KEYS."""
    teacher = random_teacher(tiny, device)
    threestudio.register("benchmark-random-teacher")(lambda cfg: teacher)

    @threestudio.register("benchmark-random-prompts")
    class Prompts(BaseObject):
        @dataclass
        class Config(BaseObject.Config):  # the config's keys, which have no part in it
            pretrained_model_name_or_path: str = ""
            prompt: str = ""

        def __call__(self) -> RandomPrompts:
            return RandomPrompts(teacher.unet.config.cross_attention_dim, device)
