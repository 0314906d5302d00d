"""A multi-view diffusion model as a teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor

from ..autoencoder import decode_latents, downsampling, encode_latents, posterior_noise
from ..contract import Cameras, Teacher
from ..loading import LoadingOptions, load_part
from ..noise_schedule import PREDICTION_TYPES, to_epsilon
from ..weights import DENOISER_PARTS, model_folder, weight_variant
from .cameras import camera_numbers
from .network import MultiViewUNet


@dataclass(frozen=True)
class MultiViewCondition:
    """A text and a camera for each sample; samples come in sets of `num_views`, which look at one another."""

    embeddings: Tensor  # [B, N, D]
    cameras: Optional[Tensor]  # [B, 16]; None: plain pictures of no known camera
    num_views: int = 1

    def cat(self, others: Sequence["MultiViewCondition"]) -> "MultiViewCondition":
        parts = [self, *others]
        embeddings = torch.cat([part.embeddings for part in parts])
        if self.cameras is None:
            return MultiViewCondition(embeddings, None, self.num_views)
        return MultiViewCondition(embeddings, torch.cat([part.cameras for part in parts]), self.num_views)

    def take(self, count: int) -> "MultiViewCondition":
        """The first `count` samples. Raises ValueError where that cuts a set."""
        if count % self.num_views:
            raise ValueError(f"expected a multiple of {self.num_views} views, got {count}")
        cameras = None if self.cameras is None else self.cameras[:count]
        return MultiViewCondition(self.embeddings[:count], cameras, self.num_views)

    def __len__(self) -> int:
        return self.embeddings.shape[0]


class MultiViewTeacher(Teacher):
    """MVDream's kind of model: a MultiViewUNet, an AutoencoderKL and a scheduler's schedule.

    Raises:
        ValueError: a denoiser that does not fit the autoencoder, or an unknown prediction type.
    """

    def __init__(self, network: MultiViewUNet, vae: Any, alphas_cumprod: Tensor, prediction_type: str) -> None:
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type: expected one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}"
            )
        config = network.unet.config
        if config.in_channels != vae.config.latent_channels:
            raise ValueError(
                f"the unet takes {config.in_channels} channels, the vae's latents have {vae.config.latent_channels}: "
                "not a text-to-image model"
            )
        self.network = network.eval().requires_grad_(False)
        self.vae = vae.eval().requires_grad_(False)
        self.alphas_cumprod = alphas_cumprod.to(device=next(vae.parameters()).device, dtype=torch.float32)
        self.prediction_type = prediction_type
        self.latent_channels = vae.config.latent_channels
        self.latent_size = config.sample_size
        self.image_size = self.latent_size * downsampling(vae)

    @classmethod
    def from_folder(
        cls,
        folder: Path,  # in diffusers' layout
        device: torch.device | str,
        options: LoadingOptions,
    ) -> "MultiViewTeacher":
        """Loads a teacher from its checked folder.

        Raises:
            ValueError: a part that does not load.
        """
        from diffusers import AutoencoderKL, DDPMScheduler

        device = torch.device(device)
        dtype = options.dtype(device)
        network = load_part(
            MultiViewUNet, folder, "unet", torch_dtype=dtype, variant=weight_variant(folder, "unet")
        )
        vae = load_part(AutoencoderKL, folder, "vae", torch_dtype=dtype, variant=weight_variant(folder, "vae"))
        scheduler = load_part(DDPMScheduler, folder, "scheduler")
        if options.enable_channels_last_format:
            network = network.to(memory_format=torch.channels_last)
        return cls(
            network.to(device), vae.to(device), scheduler.alphas_cumprod, scheduler.config.prediction_type
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, device: torch.device | str, options: LoadingOptions
    ) -> "MultiViewTeacher":
        """Loads a teacher from a folder in diffusers' layout or a hub id.

        Raises:
            FileNotFoundError, ValueError: as `weights.model_folder`; or a part that does not load.
        """
        return cls.from_folder(model_folder(pretrained_model_name_or_path, DENOISER_PARTS), device, options)

    def encode(self, images: Tensor, noise: Optional[Tensor] = None) -> Tensor:
        return encode_latents(self.vae, images, self.encoding_noise(images) if noise is None else noise)

    def encoding_noise(self, images: Tensor) -> Tensor:
        return posterior_noise(self.vae, images)

    def decode(self, latents: Tensor) -> Tensor:
        return decode_latents(self.vae, latents)

    def condition(self, embeddings: Tensor, cameras: Optional[Cameras], num_views: int = 1) -> MultiViewCondition:
        if cameras is None or cameras.c2w is None or cameras.fovy is None:
            raise ValueError("a multi-view teacher needs each view's c2w and fovy; the batch of this data has none")
        if embeddings.shape[0] % num_views:
            raise ValueError(
                f"n_view: expected a number of views that is a multiple of {num_views}, got {embeddings.shape[0]}"
            )
        numbers = camera_numbers(cameras.c2w, cameras.fovy, self.network.config.camera_encoding)
        return MultiViewCondition(embeddings, numbers, num_views)

    @torch.no_grad()
    def predict_noise(self, noisy: Tensor, timesteps: Tensor, condition: MultiViewCondition) -> Tensor:
        dtype = self.network.dtype
        cameras = None if condition.cameras is None else condition.cameras.to(noisy.device)
        with torch.autocast(self.device.type, enabled=False):
            prediction = self.network(
                noisy.to(dtype),
                timesteps,
                condition.embeddings.to(device=noisy.device, dtype=dtype),
                cameras,
                condition.num_views,
            )
        return to_epsilon(
            prediction.to(noisy.dtype), noisy, timesteps, self.alphas_cumprod, self.prediction_type
        )
