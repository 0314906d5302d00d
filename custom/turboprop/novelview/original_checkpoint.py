"""zero-1-to-3's original checkpoints (105000.ckpt, zero123-xl.ckpt, stable_zero123.ckpt or .safetensors), read without
running code.

A file holds a Lightning run: UNet, autoencoder and OpenAI's CLIP under latent diffusion's names, the projection, and a
moving average of the UNet under names without dots. The average is taken where there is one, as the authors sample with
it. Names of UNet and autoencoder are translated by diffusers' own functions; the sizes are read from the tensors.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from threestudio.utils.errors import MissingFileError, UserError, first_line

from ..teachers.autoencoder import downsampling
from ..teachers.ldm_configs import unet_config, vae_config
from ..teachers.ldm_keys import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX, convert_autoencoder
from ..teachers.noise_schedule import scaled_linear_alphas_cumprod
from .image_encoders import ImageEncoder
from .model import NovelViewModel, NovelViewSettings

UNET, VAE, CLIP = UNET_PREFIX, VAE_PREFIX, f"{TEXT_PREFIX}visual."
PROJECTION, AVERAGE = "cc_projection.", "model_ema."
# What the tensors do not tell, from sd-objaverse-finetune-c_concat-256.yaml of the authors' repository.
IMAGE_SIZE = 256  # pixels
ATTENTION_HEADS = 8
CLIP_HEAD_WIDTH = 64  # of OpenAI's vision transformers
# Objects of these packages in a run's state are replaced by placeholders; any other object is refused.
HARMLESS_PACKAGES = ("pytorch_lightning", "lightning", "omegaconf", "numpy", "collections", "typing")


class _Placeholder:
    """Stands for an object of the run that is not looked at; runs nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_checkpoint_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict of a pickled file, by weights-only loading, or of a .safetensors file. Raises FileNotFoundError
    where there is no such file, and ValueError for a broken file, one without weights, or one with objects of other
    packages than a run leaves behind."""
    from pickle import UnpicklingError

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise MissingFileError(
            f"pretrained_model_name_or_path: no checkpoint {path}; give the path of a file that you have, or a hub id "
            f"of the same model, such as {_hub_id(path.name)}"
        )
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _read_pickled(path)
    except (UnpicklingError, SafetensorError, RuntimeError, OSError, EOFError) as error:
        reason = first_line(error)
        raise UserError(f"pretrained_model_name_or_path: cannot read {path}: {reason}") from error
    tensors = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
    missing = [prefix for prefix in (UNET, VAE, CLIP, PROJECTION) if not any(key.startswith(prefix) for key in tensors)]
    if missing:
        raise UserError(f"pretrained_model_name_or_path: {path} is no zero123 checkpoint: no weights {missing[0]}*")
    return tensors


def _read_pickled(path: Path) -> Any:
    """What a run has saved, with placeholders for its objects. Raises ValueError for objects of other packages."""
    foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    refused = [name for name in foreign if name.split(".")[0] not in HARMLESS_PACKAGES]
    if refused:
        raise UserError(f"pretrained_model_name_or_path: {path} holds the object {refused[0]}: not loaded")
    with torch.serialization.safe_globals([(_Placeholder, name) for name in foreign]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _hub_id(name: str) -> str:
    """Where the hub has the model of a published file's name."""
    if name.startswith("stable"):
        return "ashawkey/stable-zero123-diffusers"
    return "kxic/zero123-105000" if name.startswith("105000") else "kxic/zero123-xl"


def load_original_checkpoint(path: Path, fourth_number: str) -> NovelViewModel:
    """The model of such a file, float32, on the CPU. Raises as `read_checkpoint_tensors`, and ValueError for weights
    that do not fit one another."""
    tensors = read_checkpoint_tensors(path)
    unet, vae, clip = _unet(tensors, path), _autoencoder(tensors, path), _clip(tensors, path)
    unet.register_to_config(sample_size=IMAGE_SIZE // downsampling(vae))
    alphas_cumprod = tensors.get("alphas_cumprod", scaled_linear_alphas_cumprod())
    settings = NovelViewSettings(fourth_number=fourth_number, null_condition="zero123")
    model = NovelViewModel(unet, vae, ImageEncoder(clip), settings, alphas_cumprod.float())
    _fill(model.tokens.projection, _under(tensors, PROJECTION), path, PROJECTION)
    return model


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value.float() for key, value in tensors.items() if key.startswith(prefix)}


def _fill(part: nn.Module, tensors: dict[str, Tensor], path: Path, prefix: str) -> None:
    try:
        part.load_state_dict(tensors)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = lines[1] if len(lines) > 1 else lines[0]
        raise UserError(f"pretrained_model_name_or_path: {path}: weights {prefix}*: {reason[:300]}") from error


def _numbers(tensors: dict[str, Tensor], pattern: str) -> list[int]:
    """The sorted distinct numbers that the one group of `pattern` matches in the names."""
    found = (re.match(pattern, key) for key in tensors)
    return sorted({int(match.group(1)) for match in found if match})


# ----------------------------------------------------------------------------------------- unet


def averaged_unet_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The UNet's tensors under their full names, with the moving average in the place of each weight that has one."""
    unet = {key: value for key, value in tensors.items() if key.startswith(UNET)}
    if not any(key.startswith(AVERAGE + "diffusion_model") for key in tensors):
        return unet
    flat = {key: AVERAGE + key.removeprefix("model.").replace(".", "") for key in unet}
    return {key: tensors.get(flat[key], value) for key, value in unet.items()}


def _unet(tensors: dict[str, Tensor], path: Path) -> Any:
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    averaged = averaged_unet_tensors(tensors)
    try:
        config = unet_config(_under(averaged, UNET), heads=ATTENTION_HEADS)
        unet = UNet2DConditionModel(**config)
        converted = convert_ldm_unet_checkpoint(averaged, config)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"pretrained_model_name_or_path: {path}: weights {UNET}* are not whole: {error}") from error
    _fill(unet, {key: value.float() for key, value in converted.items()}, path, UNET)
    return unet


# ---------------------------------------------------------------------------------- autoencoder


def _autoencoder(tensors: dict[str, Tensor], path: Path) -> Any:
    from diffusers import AutoencoderKL

    # the training loss's discriminator and perceptual network are in some files
    own = {key: value for key, value in _under(tensors, VAE).items() if not key.startswith("loss.")}
    try:
        config = {**vae_config(own), "sample_size": IMAGE_SIZE}
        vae = AutoencoderKL(**config)
        converted = convert_autoencoder(config)(own)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"pretrained_model_name_or_path: {path}: weights {VAE}* are not whole: {error}") from error
    _fill(vae, converted, path, VAE)
    return vae


# ----------------------------------------------------------------------------------------- clip


def clip_tensors(visual: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's names of a CLIP vision transformer as transformers' names of CLIPVisionModelWithProjection."""
    renamed = {
        "vision_model.embeddings.class_embedding": visual["class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": visual["conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": visual["positional_embedding"],
        "visual_projection.weight": visual["proj"].T.contiguous(),
    }
    for kind in ("weight", "bias"):
        renamed[f"vision_model.pre_layrnorm.{kind}"] = visual[f"ln_pre.{kind}"]  # transformers' spelling
        renamed[f"vision_model.post_layernorm.{kind}"] = visual[f"ln_post.{kind}"]
    inner = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
             "attn.out_proj": "self_attn.out_proj"}  # fmt: skip
    for layer in _numbers(visual, r"transformer\.resblocks\.(\d+)\."):
        old, new = f"transformer.resblocks.{layer}", f"vision_model.encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            for theirs, ours in inner.items():
                renamed[f"{new}.{ours}.{kind}"] = visual[f"{old}.{theirs}.{kind}"]
            joined = visual[f"{old}.attn.in_proj_{kind}"].chunk(3)
            for name, value in zip(("q_proj", "k_proj", "v_proj"), joined):
                renamed[f"{new}.self_attn.{name}.{kind}"] = value
    return renamed


def _clip(tensors: dict[str, Tensor], path: Path) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    visual = _under(tensors, CLIP)
    try:
        width, _, patch, _ = visual["conv1.weight"].shape
        side = round((visual["positional_embedding"].shape[0] - 1) ** 0.5)
        config = CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=visual["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            projection_dim=visual["proj"].shape[1],
            num_hidden_layers=len(_numbers(visual, r"transformer\.resblocks\.(\d+)\.")),
            num_attention_heads=width // CLIP_HEAD_WIDTH,
            image_size=side * patch,
            patch_size=patch,
            hidden_act="quick_gelu",
        )
        renamed = clip_tensors(visual)
    except KeyError as error:
        raise UserError(f"pretrained_model_name_or_path: {path}: weights {CLIP}* are not whole: {error}") from error
    model = CLIPVisionModelWithProjection(config)
    _fill(model, renamed, path, CLIP)
    return model
