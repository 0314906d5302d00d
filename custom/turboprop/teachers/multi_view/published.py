"""MVDream's published weights: the original file of all parts, and the community's folders.

The original `sd-v2.1-base-4view.pt` holds everything under the latent diffusion code's names. The community's folders
are in diffusers' layout, with a `MultiViewUNetModel` whose tensors have those names too. Files are read without
running what is in them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from threestudio.utils.errors import MissingFileError, UserError, first_line

from ..ldm_configs import text_config, unet_config, vae_config
from ..ldm_keys import (
    TEXT_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    convert_autoencoder,
    convert_network,
    convert_text_encoder,
    fill,
    text_tensors,
)
from ..weights import part_folder, read_json, weight_files
from .network import MultiViewUNet

NUM_VIEWS = 4  # of a set in MVDream's training
CAMERA_ENCODING = "mvdream"
COMMUNITY_CLASS = "MultiViewUNetModel"  # of the denoiser, in a community folder's model_index.json
TEXT_KEYS = "cond_stage_model."  # any text model; TEXT_PREFIX is OpenCLIP's
# What the original code keeps beside weights: its noise schedule, as a table for each formula.
SCHEDULE_KEYS = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
    "posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
)  # fmt: skip


@dataclass(frozen=True)
class OriginalParts:
    """The tensors of the original file, by part and without prefixes."""

    unet: dict[str, Tensor]
    vae: dict[str, Tensor]
    text: dict[str, Tensor]  # OpenCLIP's text model; empty where the file has none, or another
    schedule: dict[str, Tensor]


def read_original(path: Path) -> OriginalParts:
    """The tensors of an original file. Raises FileNotFoundError where it is missing, and ValueError where it is no file
    of tensors, or has tensors of no known part; the message names them."""
    tensors = read_tensors(path)
    tensors = {key: value for key, value in tensors.items() if not key.startswith("model_ema.")}
    prefixes = (UNET_PREFIX, VAE_PREFIX, TEXT_KEYS)
    unknown = [key for key in tensors if key not in SCHEDULE_KEYS and not key.startswith(prefixes)]
    if unknown:
        raise UserError(f"{path}: not MVDream's weights: unknown tensors {', '.join(unknown[:4])}")

    def under(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    schedule = {key: tensors[key] for key in SCHEDULE_KEYS if key in tensors}
    return OriginalParts(under(UNET_PREFIX), under(VAE_PREFIX), under(TEXT_PREFIX), schedule)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or a pickled file, on the CPU; nothing in the file is run.

    Raises: as `read_original`.
    """
    import pickle

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise MissingFileError(f"no file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, OSError, RuntimeError) as error:
        reason = first_line(error)
        raise UserError(f"{path}: not a file of tensors alone: {reason}") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path}: expected a mapping of names to tensors")
    return dict(content)


def network_of(tensors: Mapping[str, Tensor], **known: Any) -> MultiViewUNet:
    """MVDream's denoiser, of tensors without a prefix; `known` is what shapes do not tell (`unet_config`). Raises
    ValueError where weights are missing, left over or of another shape; the message names them."""
    config = unet_config(tensors, **known)
    with torch.device("meta"):
        network = MultiViewUNet(config, CAMERA_ENCODING, NUM_VIEWS)
    fill("denoiser", network, tensors, convert_network(config))
    return network


def autoencoder_of(tensors: Mapping[str, Tensor]) -> nn.Module:  # AutoencoderKL
    """The autoencoder, of tensors without a prefix. Raises ValueError as `network_of`."""
    from diffusers import AutoencoderKL

    config = vae_config(tensors)
    with torch.device("meta"):
        autoencoder = AutoencoderKL(**config)
    fill("autoencoder", autoencoder, tensors, convert_autoencoder(config))
    return autoencoder


def text_encoder_of(tensors: Mapping[str, Tensor]) -> nn.Module:  # CLIPTextModel
    """The text encoder, of OpenCLIP's tensors without a prefix. Raises ValueError as `network_of`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = text_config(tensors)
    used = text_tensors(tensors)
    # not on the meta device: it has a buffer, the numbers of places, that no file has
    text_encoder = CLIPTextModel(CLIPTextConfig(**config))
    fill("text encoder", text_encoder, used, convert_text_encoder(text_encoder))
    return text_encoder


def schedule_of(tables: Mapping[str, Tensor]) -> Any:  # DDIMScheduler
    """Stable Diffusion's noise schedule, which is MVDream's. Raises ValueError where the file's own table says
    otherwise."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    table = tables.get("alphas_cumprod")
    if table is None:
        return scheduler
    expected = scheduler.alphas_cumprod
    if table.shape != expected.shape or not torch.allclose(table.float(), expected, atol=1e-4):
        raise UserError("alphas_cumprod: expected the noise schedule of Stable Diffusion, got another")
    return scheduler


def community_network(folder: Path) -> MultiViewUNet:  # a checked model folder
    """The denoiser of a community folder. Raises as `network_of`, and ValueError for ImageDream's network, which wants
    a picture too."""
    config = read_json(part_folder(folder, "unet") / "config.json")
    if config.get("ip_dim"):
        raise UserError(f"{folder}: the network is ImageDream's (ip_dim {config['ip_dim']}), expected MVDream's")
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder, "unet"):
        tensors.update(read_tensors(path))
    heads = config.get("num_heads", -1)
    width = config.get("num_head_channels", -1)
    known: dict[str, Any] = {"sample_size": config["image_size"]} if "image_size" in config else {}
    if width and width > 0:
        known["head_width"] = width
    elif heads and heads > 0:
        known["heads"] = heads
    try:
        return network_of(tensors, **known)
    except ValueError as error:
        raise UserError(f"pretrained_model_name_or_path: cannot load unet of {folder}: {error}") from error
