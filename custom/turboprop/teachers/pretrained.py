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
    """A multi-view model if the folder lists its network, a latent diffusion model if it lists an autoencoder, else a
    pixel-space one.

    Raises:
        FileNotFoundError, ValueError: as `weights.model_folder`; or a part that does not load.
    """
    classes = part_classes(pretrained_model_name_or_path)
    if classes.get("unet") == "MultiViewUNet":
        from .multi_view.teacher import MultiViewTeacher

        return MultiViewTeacher.from_pretrained(pretrained_model_name_or_path, device, options)
    if "vae" in classes:
        return LatentDiffusionTeacher.from_pretrained(
            pretrained_model_name_or_path,
            device,
            half_precision_weights=options.half_precision_weights,
            enable_attention_slicing=options.enable_attention_slicing,
            enable_channels_last_format=options.enable_channels_last_format,
            enable_sequential_cpu_offload=options.enable_sequential_cpu_offload,
        )
    return PixelDiffusionTeacher.from_pretrained(pretrained_model_name_or_path, device, options)
