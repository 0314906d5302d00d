"""The teacher that a model folder holds, whichever family it is of."""

import torch

from .contract import Teacher
from .latent_diffusion import LatentDiffusionTeacher
from .loading import DEFAULT_OPTIONS, LoadingOptions
from .pixel_diffusion import PixelDiffusionTeacher
from .weights import is_weight_file, part_classes

MULTI_VIEW_CLASSES = ("MultiViewUNet", "MultiViewUNetModel")  # ours, and that of the community's MVDream folders


def is_multi_view(pretrained_model_name_or_path: str) -> bool:
    """Whether that is a multi-view model: MVDream's file, or a folder that lists its network. Reads no weights."""
    name = pretrained_model_name_or_path
    return is_weight_file(name) or part_classes(name).get("unet") in MULTI_VIEW_CLASSES


def load_teacher(
    pretrained_model_name_or_path: str,  # a folder in diffusers' layout, a hub id, or MVDream's own file
    device: torch.device | str = "cpu",
    options: LoadingOptions = DEFAULT_OPTIONS,
) -> Teacher:
    """The teacher of a model folder, a hub id, or MVDream's own file.

    A multi-view model if it is MVDream's file or the folder lists its network, a latent diffusion model if it lists an
    autoencoder, else a pixel-space one. Raises as `weights.model_folder`, and ValueError for a part that does not load.
    """
    if is_multi_view(pretrained_model_name_or_path):
        from .multi_view.teacher import MultiViewTeacher

        return MultiViewTeacher.from_pretrained(pretrained_model_name_or_path, device, options)
    if "vae" in part_classes(pretrained_model_name_or_path):
        return LatentDiffusionTeacher.from_pretrained(pretrained_model_name_or_path, device, options)
    return PixelDiffusionTeacher.from_pretrained(pretrained_model_name_or_path, device, options)
