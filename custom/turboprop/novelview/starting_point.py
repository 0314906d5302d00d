"""The model that training starts from: a novel-view model, or another latent diffusion model and image encoders."""

from pathlib import Path

import torch

from threestudio.utils.errors import MissingFileError, UserError

from ..teachers.loading import load_part
from ..teachers.weights import is_weight_file, model_folder, part_classes, part_folder
from .image_encoders import ImageEncoder, read_encoder
from .loading import FOREIGN_PROJECTIONS, load_novel_view_model, load_whole_part, model_is_named
from .model import NovelViewModel, NovelViewSettings, widened_for_input_view
from .timestep_sampling import interpolated_noise_shift


def starting_model(
    name: str,  # a folder in one of the known layouts, a hub id, or zero123's .ckpt
    settings: NovelViewSettings,
    image_encoder: str = "",  # a folder of an encoder; empty: the start's own
    feature_encoder: str = "",  # likewise; empty: the image encoder gives the features
    noise_shift: float = 1.0,  # see timestep_sampling.interpolated_noise_shift
) -> NovelViewModel:
    """A model with the given settings and the weights of the start, in float32 on the CPU.

    What the start does not have (injection; a projection of tokens of another width) begins as `conditioning` says.
    Raises FileNotFoundError or ValueError for a start that cannot be loaded, or that does not fit the settings.
    """
    with model_is_named("system.start_from"):
        start = load_novel_view_model(name) if _is_novel_view_model(name) else None
        if start is None:
            unet, vae, alphas, kind = _denoiser(model_folder(name, ("unet", "vae", "scheduler")))
            tokens_encoder = features_encoder = None
        else:
            unet, vae, alphas, kind = start.unet, start.vae, start.alphas_cumprod, start.prediction_type
            tokens_encoder, features_encoder = start.image_encoder, start.feature_encoder
    if image_encoder:
        key = "system.image_encoder"
        tokens_encoder = read_encoder(_encoder_folder(image_encoder, key), settings.image_encoder_size, key)
    elif start is None:
        tokens_encoder = _encoder_of_start(name, settings.image_encoder_size)
    if feature_encoder:
        key = "system.feature_encoder"
        features_encoder = read_encoder(_encoder_folder(feature_encoder, key), settings.feature_encoder_size, key)
    if not settings.feature_layers:
        features_encoder = None
    alphas = interpolated_noise_shift(alphas, noise_shift)
    model = NovelViewModel(unet, vae, tokens_encoder, settings, alphas, kind, features_encoder)
    if start is not None:
        _take_over(model, start)
    return model


def _is_novel_view_model(name: str) -> bool:
    return is_weight_file(name) or bool(part_classes(name).keys() & {"conditioning", *FOREIGN_PROJECTIONS})


def _denoiser(folder: Path) -> tuple:
    """UNet (widened where it takes no input view), autoencoder, schedule [T] and prediction type."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    unet = load_whole_part(UNet2DConditionModel, folder, "unet")
    vae = load_whole_part(AutoencoderKL, folder, "vae")
    scheduler = load_part(DDPMScheduler, folder, "scheduler")
    if unet.config.in_channels == vae.config.latent_channels:
        unet = widened_for_input_view(unet)
    return unet, vae, scheduler.alphas_cumprod, scheduler.config.prediction_type


def _encoder_of_start(name: str, size: int) -> ImageEncoder:
    if "image_encoder" not in part_classes(name):
        raise UserError(f"system.image_encoder: {name} has no image encoder of its own: name a folder of one")
    return read_encoder(part_folder(model_folder(name, ("image_encoder",)), "image_encoder"), size)


def _encoder_folder(name: str, key: str) -> Path:
    """The folder of an encoder that a config's `key` names, fetched from the hub if it is an id "owner/name"."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if len(name.split("/")) != 2 or name.startswith((".", "/", "~")):
        raise MissingFileError(f"{key}: no folder {name}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MissingFileError(f"{key}: no folder {name}, and the hub does not give it: {reason}") from error


def _take_over(model: NovelViewModel, start: NovelViewModel) -> None:
    """The start's projection and injection, where they have the same shape in the model."""
    with torch.no_grad():
        for own, theirs in ((model.tokens, start.tokens), (model.injection, start.injection)):
            if own is None or theirs is None:
                continue
            ours, given = own.state_dict(), theirs.state_dict()
            if ours.keys() == given.keys() and all(ours[key].shape == given[key].shape for key in ours):
                own.load_state_dict(given)
