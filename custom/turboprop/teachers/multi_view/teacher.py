"""A multi-view diffusion model as a teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.utils.errors import MissingFileError, UserError

from ..autoencoder import TextToImageTeacher, downsampling
from ..contract import Cameras
from ..loading import LoadingOptions, load_part, sample_side
from ..noise_schedule import to_epsilon
from ..weights import DENOISER_PARTS, is_weight_file, model_folder, part_classes, weight_variant
from .cameras import camera_numbers
from .network import MultiViewUNet
from .published import (
    COMMUNITY_CLASS,
    autoencoder_of,
    community_network,
    network_of,
    read_original,
    schedule_of,
)


@dataclass(frozen=True)
class MultiViewCondition:
    """A text and a camera for each sample; samples come in sets of `num_views`, which look at one another."""

    embeddings: Tensor  # [B, N, D]
    cameras: Tensor | None  # [B, 16]; None: plain pictures of no known camera
    num_views: int = 1

    def cat(self, others: Sequence["MultiViewCondition"]) -> "MultiViewCondition":
        """Raises ValueError for sets of other sizes, or where only some know their cameras."""
        parts = [self, *others]
        if len({(part.num_views, part.cameras is None) for part in parts}) > 1:
            raise UserError("expected sets of one size, all with cameras or all without")
        embeddings = torch.cat([part.embeddings for part in parts])
        known = [part.cameras for part in parts if part.cameras is not None]
        return MultiViewCondition(embeddings, torch.cat(known) if known else None, self.num_views)

    def take(self, count: int) -> "MultiViewCondition":
        """The first `count` samples. Raises ValueError where that cuts a set."""
        if count % self.num_views:
            raise UserError(f"expected a multiple of {self.num_views} views, got {count}")
        cameras = None if self.cameras is None else self.cameras[:count]
        return MultiViewCondition(self.embeddings[:count], cameras, self.num_views)

    def __len__(self) -> int:
        return self.embeddings.shape[0]


class MultiViewTeacher(TextToImageTeacher[MultiViewCondition]):
    """MVDream's kind of model: a MultiViewUNet, an AutoencoderKL and a scheduler's schedule.

    Pictures have the side that the network was trained with, or `image_size`. Raises ValueError for a denoiser that
    does not fit the autoencoder, an unknown prediction type, or pictures whose side is no multiple of the autoencoder's
    factor.
    """

    def __init__(
        self,
        network: MultiViewUNet,
        vae: Any,  # AutoencoderKL
        alphas_cumprod: Tensor,  # [T]
        prediction_type: str,
        image_size: int | None = None,  # pixels
    ) -> None:
        config = network.unet.config
        super().__init__(config, vae, alphas_cumprod, prediction_type)
        self.network = network.eval().requires_grad_(False)
        factor = downsampling(vae)
        self.image_size = sample_side(config) * factor if image_size is None else image_size
        if self.image_size < factor or self.image_size % factor:
            raise UserError(f"image_size: expected a multiple of {factor}, got {image_size}")
        self.latent_size = self.image_size // factor
        self._told: tuple[Cameras, Tensor] | None = None  # the cameras last asked about, and their numbers

    def at_image_size(self, image_size: int) -> "MultiViewTeacher":  # pixels
        """This teacher, asked about pictures of another side. Raises ValueError as the class."""
        return MultiViewTeacher(self.network, self.vae, self.alphas_cumprod, self.prediction_type, image_size)

    @classmethod
    def from_folder(
        cls,
        folder: Path,  # in diffusers' layout, ours or the community's
        device: torch.device | str,
        options: LoadingOptions,
    ) -> "MultiViewTeacher":
        """Loads a teacher from its checked folder. Raises ValueError for a part that does not load."""
        from diffusers import AutoencoderKL, DDPMScheduler

        device = torch.device(device)
        dtype = options.dtype(device)
        if part_classes(str(folder)).get("unet") == COMMUNITY_CLASS:
            network = community_network(folder).to(dtype)
        else:
            variant = weight_variant(folder, "unet")
            network = load_part(MultiViewUNet, folder, "unet", torch_dtype=dtype, variant=variant)
        vae = load_part(AutoencoderKL, folder, "vae", torch_dtype=dtype, variant=weight_variant(folder, "vae"))
        scheduler = load_part(DDPMScheduler, folder, "scheduler")
        if options.enable_channels_last_format:
            network = network.to(memory_format=torch.channels_last)
        return cls(network.to(device), vae.to(device), scheduler.alphas_cumprod, scheduler.config.prediction_type)

    @classmethod
    def from_original(
        cls,
        path: Path,  # MVDream's own file of all parts
        device: torch.device | str,
        options: LoadingOptions,
    ) -> "MultiViewTeacher":
        """Loads a teacher from the file that MVDream's authors published. Raises FileNotFoundError where it is missing,
        and ValueError where weights are missing, left over or of another shape; the message names them."""
        device = torch.device(device)
        dtype = options.dtype(device)
        try:
            parts = read_original(path)
            network = network_of(parts.unet).to(device, dtype)
            vae = autoencoder_of(parts.vae).to(device, dtype)
            schedule = schedule_of(parts.schedule)
        except FileNotFoundError as error:
            raise MissingFileError(f"pretrained_model_name_or_path: {error}") from error
        except ValueError as error:
            raise UserError(f"pretrained_model_name_or_path: cannot load {path}: {error}") from error
        if options.enable_channels_last_format:
            network = network.to(memory_format=torch.channels_last)
        return cls(network, vae, schedule.alphas_cumprod, schedule.config.prediction_type)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, device: torch.device | str, options: LoadingOptions
    ) -> "MultiViewTeacher":
        """Loads a teacher from a folder in diffusers' layout, a hub id, or MVDream's own file. Raises as
        `weights.model_folder`, and ValueError for a part that does not load."""
        for name in ("enable_attention_slicing", "enable_sequential_cpu_offload"):
            if getattr(options, name):
                threestudio.warn(f"{name}: multi-view teachers go without it; their attention is fused")
        if is_weight_file(pretrained_model_name_or_path):
            return cls.from_original(Path(pretrained_model_name_or_path).expanduser(), device, options)
        return cls.from_folder(model_folder(pretrained_model_name_or_path, DENOISER_PARTS), device, options)

    def condition(self, embeddings: Tensor, cameras: Cameras | None, num_views: int = 1) -> MultiViewCondition:
        if cameras is None or cameras.c2w is None or cameras.fovy is None:
            raise UserError("a multi-view teacher needs each view's c2w and fovy; the batch of this data has none")
        if embeddings.shape[0] % num_views:
            raise UserError(
                f"n_view: expected a number of views that is a multiple of {num_views}, got {embeddings.shape[0]}"
            )
        told = self._told  # threads may ask side by side
        if told is None or told[0] is not cameras:  # a step asks with a text and without
            told = (cameras, camera_numbers(cameras.c2w, cameras.fovy, self.network.config.camera_encoding))
            self._told = told
        return MultiViewCondition(embeddings, told[1], num_views)

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
        return to_epsilon(prediction.to(noisy.dtype), noisy, timesteps, self.alphas_cumprod, self.prediction_type)
