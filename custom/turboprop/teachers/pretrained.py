"""The teacher that a model folder holds, whichever family it is of."""

import torch

from .contract import Teacher
from .latent_diffusion import LatentDiffusionTeacher
from .loading import DEFAULT_OPTIONS, LoadingOptions
from .pixel_diffusion import PixelDiffusionTeacher
from .weights import part_classes


def load_teacher(
    pretrained_model_name_or_path: str,  # a folder in diffusers' layout or a hub id
    device: torch.device | str = "cpu",
    options: LoadingOptions = DEFAULT_OPTIONS,
) -> Teacher:
    """A latent diffusion model if the folder lists an autoencoder, else a pixel-space one.

    Raises:
        FileNotFoundError, ValueError: as `weights.model_folder`; or a part that does not load.
    """
    if "vae" in part_classes(pretrained_model_name_or_path):
        return LatentDiffusionTeacher.from_pretrained(
            pretrained_model_name_or_path,
            device,
            half_precision_weights=options.half_precision_weights,
            enable_attention_slicing=options.enable_attention_slicing,
            enable_channels_last_format=options.enable_channels_last_format,
            enable_sequential_cpu_offload=options.enable_sequential_cpu_offload,
        )
    return PixelDiffusionTeacher.from_pretrained(pretrained_model_name_or_path, device, options)
