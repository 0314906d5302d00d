"""Configs of diffusers' networks, read off the shapes of tensors under the original latent diffusion code's names.

The original file has no config inside. What shapes do not tell is as in Stable Diffusion 1 and 2.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from threestudio.utils.errors import UserError

LATENT_SIZE = 32  # MVDream and zero-1-to-3 were trained on pictures of 256 pixels
HEAD_WIDTH = 64  # channels of an attention head in Stable Diffusion 2
HEADS = 8  # attention heads in Stable Diffusion 1, at all widths
SCALING_FACTOR = 0.18215  # of the latents, in Stable Diffusion 1 and 2
TEXT_LAYERS_LEFT_OUT = 1  # Stable Diffusion 2 takes the penultimate block's embeddings
TEXT_HEAD_WIDTH = 64  # of OpenCLIP's text models


def tensor_of(tensors: Mapping[str, Tensor], key: str, part: str) -> Tensor:
    """Raises ValueError, which names the key, where it is missing."""
    if key not in tensors:
        raise UserError(f"not the {part} of a latent diffusion model: it lacks {key}")
    return tensors[key]


def unet_config(
    tensors: Mapping[str, Tensor],  # of the denoiser, without a prefix
    sample_size: int = LATENT_SIZE,
    head_width: int | None = None,  # channels of an attention head
    heads: int | None = None,  # number of heads at all widths, in the place of a head's width
) -> dict[str, Any]:
    """The arguments of UNet2DConditionModel. Raises ValueError, which names a key that is missing."""
    part = "denoiser"
    levels = _levels(tensors)
    attention = [any(f"input_blocks.{i}.1.proj_in.weight" in tensors for i in level) for level in levels]
    widths = [tensor_of(tensors, f"input_blocks.{level[0]}.0.out_layers.3.weight", part).shape[0] for level in levels]
    inner = "middle_block.1.transformer_blocks"
    linear = tensor_of(tensors, "middle_block.1.proj_in.weight", part).ndim == 2
    context = tensor_of(tensors, f"{inner}.0.attn2.to_k.weight", part)
    depth = len({key.split(".")[3] for key in tensors if key.startswith(f"{inner}.")})
    if heads is None and head_width is None:
        head_width, heads = (HEAD_WIDTH, None) if linear else (None, HEADS)
    down = ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attention]
    up = ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention)]
    return {
        "sample_size": sample_size,
        "in_channels": tensor_of(tensors, "input_blocks.0.0.weight", part).shape[1],
        "out_channels": tensor_of(tensors, "out.2.weight", part).shape[0],
        "block_out_channels": tuple(widths),
        "layers_per_block": len(levels[0]),
        "down_block_types": tuple(down),
        "up_block_types": tuple(up),
        "cross_attention_dim": context.shape[1],
        "transformer_layers_per_block": depth,
        "use_linear_projection": linear,
        # diffusers' name for the number of heads
        "attention_head_dim": tuple(width // head_width if head_width else heads for width in widths),
    }


def _levels(tensors: Mapping[str, Tensor]) -> list[list[int]]:
    """The input blocks of each resolution that have residual layers; downsampling blocks part them."""
    numbers = {int(key.split(".")[1]) for key in tensors if key.startswith("input_blocks.")}
    levels: list[list[int]] = [[]]
    for number in range(1, max(numbers, default=0) + 1):
        if f"input_blocks.{number}.0.op.weight" in tensors:
            levels.append([])
        else:
            levels[-1].append(number)
    if not all(levels):
        raise UserError("not the denoiser of a latent diffusion model: it lacks input_blocks.1.0.out_layers.3.weight")
    return levels


def vae_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:  # of the autoencoder, without a prefix
    """The arguments of AutoencoderKL. Raises ValueError, which names a key that is missing."""
    part = "autoencoder"
    count = len({key.split(".")[2] for key in tensors if key.startswith("encoder.down.")})
    first = "encoder.down.{}.block.0.conv1.weight"
    widths = [tensor_of(tensors, first.format(level), part).shape[0] for level in range(max(count, 1))]
    layers = {key.split(".")[4] for key in tensors if key.startswith("encoder.down.0.block.")}
    return {
        "in_channels": tensor_of(tensors, "encoder.conv_in.weight", part).shape[1],
        "out_channels": tensor_of(tensors, "decoder.conv_out.weight", part).shape[0],
        "latent_channels": tensor_of(tensors, "decoder.conv_in.weight", part).shape[1],
        "block_out_channels": tuple(widths),
        "layers_per_block": len(layers),
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "scaling_factor": SCALING_FACTOR,
    }


def text_width(tensors: Mapping[str, Tensor]) -> int:  # of OpenCLIP's text model, without a prefix
    return tensor_of(tensors, "ln_final.weight", "text encoder").shape[0]


def text_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:  # of OpenCLIP's text model, without a prefix
    """The arguments of CLIPTextConfig. Raises ValueError, which names a key that is missing."""
    part = "text encoder"
    vocabulary = tensor_of(tensors, "token_embedding.weight", part).shape[0]
    blocks = {key.split(".")[2] for key in tensors if key.startswith("transformer.resblocks.")}
    return {
        "vocab_size": vocabulary,
        "hidden_size": text_width(tensors),
        "intermediate_size": tensor_of(tensors, "transformer.resblocks.0.mlp.c_fc.weight", part).shape[0],
        "num_hidden_layers": len(blocks) - TEXT_LAYERS_LEFT_OUT,
        "num_attention_heads": max(text_width(tensors) // TEXT_HEAD_WIDTH, 1),
        "max_position_embeddings": tensor_of(tensors, "positional_embedding", part).shape[0],
        "hidden_act": "gelu",
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 0,  # Stable Diffusion 2 pads with "!"
    }
