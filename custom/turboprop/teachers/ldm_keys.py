"""Networks of diffusers filled from tensors under the names of the original latent diffusion code, key by key.

diffusers' own converters rename; what is checked here is that every weight of the network got its tensor, that no
tensor of the file was left over, and that all shapes fit.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from threestudio.utils.errors import UserError

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.model."
# Of OpenCLIP's text model: parts of the contrastive loss, and a mask that is a constant.
UNUSED_TEXT_KEYS = ("logit_scale", "text_projection", "attn_mask")
_NAMED = 4  # keys that an error lists before it counts the rest

Converter = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def fill(
    part: str,  # what the network is, for errors
    network: nn.Module,  # may be on the meta device; afterwards it holds the tensors themselves
    tensors: Mapping[str, Tensor],  # of the file, those of this part
    convert: Converter,
) -> None:
    """Gives `network` its weights. Raises ValueError where weights are missing, left over or of another shape; the
    message names them."""
    origins = key_origins(tensors, convert)
    expected = network.state_dict()
    problems = []
    missing = [key for key in expected if key not in origins]
    if missing:
        problems.append(f"it lacks what becomes {_listed(missing)}")
    used = {origins[key] for key in expected if key in origins}
    unused = [key for key in tensors if key not in used]
    if unused:
        problems.append(f"it has {_listed(unused)} beyond it")
    if not problems:
        converted = convert(dict(tensors))
        for key, value in expected.items():
            if converted[key].shape != value.shape:
                problems.append(f"{origins[key]}: expected shape {list(value.shape)}, got {list(converted[key].shape)}")
    if problems:
        raise UserError(f"not the {part} of MVDream: {'; '.join(problems[:_NAMED])}")
    network.load_state_dict({key: converted[key] for key in expected}, assign=True)


def key_origins(tensors: Mapping[str, Tensor], convert: Converter) -> dict[str, str]:
    """The name in the file of what each key of the converted weights is made of.

    `convert` is asked about tensors of the same shapes in which each entry is the number of its key.
    """
    names = list(tensors)
    numbered = {name: torch.tensor(float(number)).expand(tensors[name].shape) for number, name in enumerate(names)}
    return {key: names[int(value.flatten()[0])] for key, value in convert(numbered).items()}


def _listed(keys: Sequence[str]) -> str:
    rest = len(keys) - _NAMED
    return ", ".join(keys[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def convert_network(unet_config: Mapping[str, Any]) -> Converter:
    """Renames the tensors of MVDream's denoiser, whose keys have no prefix, to those of MultiViewUNet."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    def convert(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        camera = {key: value for key, value in tensors.items() if key.startswith("camera_embed.")}
        plain = {f"{UNET_PREFIX}{key}": value for key, value in tensors.items() if key not in camera}
        converted = convert_ldm_unet_checkpoint(plain, config=unet_config)
        return {
            **{f"unet.{key}": value for key, value in converted.items()},
            **{key.replace("camera_embed.", "camera_embedding.", 1): value for key, value in camera.items()},
        }

    return convert


def convert_autoencoder(vae_config: Mapping[str, Any]) -> Converter:
    """Renames the tensors of LDM's autoencoder, whose keys have no prefix, to those of AutoencoderKL."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    def convert(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        prefixed = {f"{VAE_PREFIX}{key}": value for key, value in tensors.items()}
        return convert_ldm_vae_checkpoint(prefixed, config=vae_config)

    return convert


def convert_text_encoder(text_encoder: nn.Module) -> Converter:
    """Renames the tensors of OpenCLIP's text model, whose keys have no prefix, to those of CLIPTextModel."""
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    bare = not any(key.startswith("text_model.") for key in text_encoder.state_dict())

    def convert(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        prefixed = {f"{TEXT_PREFIX}{key}": value for key, value in tensors.items()}
        converted = convert_open_clip_checkpoint(text_encoder, prefixed, prefix=TEXT_PREFIX)
        return {key.removeprefix("text_model.") if bare else key: value for key, value in converted.items()}

    return convert


def text_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of OpenCLIP's text model that Stable Diffusion 2 uses: all but the last block's.

    Its text embeddings are the penultimate block's, normalised.
    """
    blocks = {int(key.split(".")[2]) for key in tensors if key.startswith("transformer.resblocks.")}
    last = f"transformer.resblocks.{max(blocks, default=0)}."
    return {key: value for key, value in tensors.items() if key not in UNUSED_TEXT_KEYS and not key.startswith(last)}
