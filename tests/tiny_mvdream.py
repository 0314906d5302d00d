"""MVDream's published layouts: the names and shapes of the original file's tensors, and files of them at small size."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

# The original's own sizes (its sd-v2-base.yaml), and small ones. 64 channels make one head, 32 are the least for the
# group norms.
FULL_UNET = {"channels": 320, "multipliers": (1, 2, 4, 4), "layers": 2, "context": 1024}
TINY_UNET = {"channels": 64, "multipliers": (1, 2), "layers": 1, "context": 16}
FULL_VAE = {"channels": 128, "multipliers": (1, 2, 4, 4), "layers": 2}
TINY_VAE = {"channels": 32, "multipliers": (1, 1), "layers": 1}
FULL_TEXT = {"width": 1024, "layers": 24, "vocabulary": 49408, "tokens": 77}
TINY_TEXT = {"width": 16, "layers": 3, "vocabulary": 40, "tokens": 12}


def layer(name: str, *shape: int) -> Shapes:
    """A weight and its bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def residual(name: str, old: int, new: int, embedding: int) -> Shapes:
    shapes = {
        **layer(f"{name}.in_layers.0", old),
        **layer(f"{name}.in_layers.2", new, old, 3, 3),
        **layer(f"{name}.emb_layers.1", new, embedding),
        **layer(f"{name}.out_layers.0", new),
        **layer(f"{name}.out_layers.3", new, new, 3, 3),
    }
    return shapes if old == new else {**shapes, **layer(f"{name}.skip_connection", new, old, 1, 1)}


def transformer(name: str, width: int, context: int, linear: bool) -> Shapes:
    block = f"{name}.transformer_blocks.0"
    projection = (width, width) if linear else (width, width, 1, 1)
    shapes = {**layer(f"{name}.norm", width), **layer(f"{name}.proj_in", *projection)}
    for attention, keys in (("attn1", width), ("attn2", context)):
        shapes[f"{block}.{attention}.to_q.weight"] = (width, width)
        shapes[f"{block}.{attention}.to_k.weight"] = (width, keys)
        shapes[f"{block}.{attention}.to_v.weight"] = (width, keys)
        shapes |= layer(f"{block}.{attention}.to_out.0", width, width)
    shapes |= layer(f"{block}.ff.net.0.proj", 8 * width, width)
    shapes |= layer(f"{block}.ff.net.2", width, 4 * width)
    for norm in ("norm1", "norm2", "norm3"):
        shapes |= layer(f"{block}.{norm}", width)
    return shapes | layer(f"{name}.proj_out", *projection)


def unet_shapes(
    channels: int, multipliers: Sequence[int], layers: int, context: int, linear: bool = True, camera: int = 16
) -> Shapes:
    """The denoiser's tensors: attention at all resolutions but the last."""
    embedding = 4 * channels
    shapes = {
        **layer("time_embed.0", embedding, channels),
        **layer("time_embed.2", embedding, embedding),
        **layer("camera_embed.0", embedding, camera),
        **layer("camera_embed.2", embedding, embedding),
        **layer("input_blocks.0.0", channels, 4, 3, 3),
    }
    width, number, skips, last = channels, 1, [channels], len(multipliers) - 1
    for level, multiplier in enumerate(multipliers):
        for _ in range(layers):
            shapes |= residual(f"input_blocks.{number}.0", width, channels * multiplier, embedding)
            width = channels * multiplier
            if level < last:
                shapes |= transformer(f"input_blocks.{number}.1", width, context, linear)
            skips.append(width)
            number += 1
        if level < last:
            shapes |= layer(f"input_blocks.{number}.0.op", width, width, 3, 3)
            skips.append(width)
            number += 1
    shapes |= residual("middle_block.0", width, width, embedding)
    shapes |= transformer("middle_block.1", width, context, linear)
    shapes |= residual("middle_block.2", width, width, embedding)
    number = 0
    for level in reversed(range(len(multipliers))):
        for index in range(layers + 1):
            new = channels * multipliers[level]
            shapes |= residual(f"output_blocks.{number}.0", width + skips.pop(), new, embedding)
            width = new
            if level < last:
                shapes |= transformer(f"output_blocks.{number}.1", width, context, linear)
            if level and index == layers:
                shapes |= layer(f"output_blocks.{number}.{2 if level < last else 1}.conv", width, width, 3, 3)
            number += 1
    return {**shapes, **layer("out.0", width), **layer("out.2", 4, width, 3, 3)}


def picture_block(name: str, old: int, new: int) -> Shapes:
    shapes = {
        **layer(f"{name}.norm1", old),
        **layer(f"{name}.conv1", new, old, 3, 3),
        **layer(f"{name}.norm2", new),
        **layer(f"{name}.conv2", new, new, 3, 3),
    }
    return shapes if old == new else {**shapes, **layer(f"{name}.nin_shortcut", new, old, 1, 1)}


def middle(name: str, width: int) -> Shapes:
    shapes = {**picture_block(f"{name}.block_1", width, width), **picture_block(f"{name}.block_2", width, width)}
    shapes |= layer(f"{name}.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        shapes |= layer(f"{name}.attn_1.{part}", width, width, 1, 1)
    return shapes


def vae_shapes(channels: int, multipliers: Sequence[int], layers: int) -> Shapes:
    """The autoencoder's tensors: 3 colours, 4 channels of latents."""
    shapes = layer("encoder.conv_in", channels, 3, 3, 3)
    width = channels
    for level, multiplier in enumerate(multipliers):
        for index in range(layers):
            shapes |= picture_block(f"encoder.down.{level}.block.{index}", width, channels * multiplier)
            width = channels * multiplier
        if level < len(multipliers) - 1:
            shapes |= layer(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    shapes |= middle("encoder.mid", width) | layer("encoder.norm_out", width)
    shapes |= layer("encoder.conv_out", 8, width, 3, 3) | layer("decoder.conv_in", width, 4, 3, 3)
    shapes |= middle("decoder.mid", width)
    for level in reversed(range(len(multipliers))):
        for index in range(layers + 1):
            shapes |= picture_block(f"decoder.up.{level}.block.{index}", width, channels * multipliers[level])
            width = channels * multipliers[level]
        if level:
            shapes |= layer(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    shapes |= layer("decoder.norm_out", width) | layer("decoder.conv_out", 3, width, 3, 3)
    return shapes | layer("quant_conv", 8, 8, 1, 1) | layer("post_quant_conv", 4, 4, 1, 1)


def text_shapes(width: int, layers: int, vocabulary: int, tokens: int) -> Shapes:
    """OpenCLIP's text model."""
    shapes: Shapes = {
        "positional_embedding": (tokens, width),
        "text_projection": (width, width),
        "logit_scale": (),
        "token_embedding.weight": (vocabulary, width),
    }
    for index in range(layers):
        name = f"transformer.resblocks.{index}"
        shapes |= layer(f"{name}.ln_1", width) | layer(f"{name}.ln_2", width)
        shapes |= {f"{name}.attn.in_proj_weight": (3 * width, width), f"{name}.attn.in_proj_bias": (3 * width,)}
        shapes |= layer(f"{name}.attn.out_proj", width, width)
        shapes |= layer(f"{name}.mlp.c_fc", 4 * width, width) | layer(f"{name}.mlp.c_proj", width, 4 * width)
    return shapes | layer("ln_final", width)


def random_tensors(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Tensors of such sizes that a network of them neither dies nor explodes."""
    generator = torch.Generator().manual_seed(seed)

    def one(shape: tuple[int, ...]) -> Tensor:
        fan_in = max(1, int(torch.tensor(shape[1:]).prod())) if len(shape) > 1 else 1
        values = torch.randn(shape, generator=generator)
        return values * 0.5 / fan_in**0.5 if len(shape) > 1 else 0.3 * values

    tensors = {name: one(shape) for name, shape in shapes.items()}
    norms = ("in_layers.0.weight", "out_layers.0.weight", "out.0.weight")
    for name in tensors:
        if name.endswith(norms) or any(f"{norm}.weight" in name for norm in ("norm", "norm1", "norm2", "norm3")):
            tensors[name] = tensors[name] + 1
    return tensors


def original_tensors() -> dict[str, Tensor]:
    """Everything in a small `sd-v2.1-base-4view.pt`."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    parts = (
        ("model.diffusion_model.", unet_shapes(**TINY_UNET)),
        ("first_stage_model.", vae_shapes(**TINY_VAE)),
        ("cond_stage_model.model.", text_shapes(**TINY_TEXT)),
    )
    tensors = {f"{prefix}{name}": value for prefix, shapes in parts for name, value in random_tensors(shapes).items()}
    cumprod = (1 - betas).cumprod(0)
    return {**tensors, "betas": betas.float(), "alphas_cumprod": cumprod.float(),
            "sqrt_alphas_cumprod": cumprod.sqrt().float()}  # fmt: skip


@pytest.fixture(scope="session")
def mvdream_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file in the original's layout: sets of views of 64 pixels, latents [4, 32, 32]."""
    path = tmp_path_factory.mktemp("mvdream") / "sd-v2.1-base-4view.pt"
    torch.save(original_tensors(), path)
    return path


@pytest.fixture(scope="session")
def community_folder(tmp_path_factory: pytest.TempPathFactory, mvdream_file: Path) -> Path:
    """The tiny weights as the community has them in diffusers' layout."""
    from safetensors.torch import save_file
    from turboprop.teachers.multi_view.convert import convert

    folder = tmp_path_factory.mktemp("community") / "mvdream-sd2.1-diffusers"
    convert(mvdream_file, folder)
    for path in (folder / "unet").iterdir():
        path.unlink()
    unet = random_tensors(unet_shapes(**TINY_UNET))
    save_file(unet, folder / "unet" / "diffusion_pytorch_model.safetensors")
    config = {
        "_class_name": "MultiViewUNetModel", "image_size": 32, "in_channels": 4, "out_channels": 4,
        "model_channels": 64, "attention_resolutions": [1], "num_res_blocks": 1, "channel_mult": [1, 2],
        "num_heads": -1, "num_head_channels": 64, "transformer_depth": 1, "context_dim": 16, "camera_dim": 16,
        "ip_dim": 0, "ip_weight": 1.0,
    }  # fmt: skip
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "MVDreamPipeline", "unet": ["models", "MultiViewUNetModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
