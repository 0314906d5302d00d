"""Writes a model under the names of zero-1-to-3's original checkpoints: latent diffusion's and OpenAI CLIP's.

Written from those repositories' module names, in the other direction than the loader's.
"""

import torch
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip


def _take(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) + 1 :]: value for key, value in state.items() if key.startswith(prefix + ".")}


def _resnet(state: dict[str, Tensor], prefix: str, target: str, names: dict[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in _take(state, prefix).items():
        layer, kind = key.rsplit(".", 1)
        renamed[f"{target}.{names[layer]}.{kind}"] = value
    return renamed


def unet_tensors(unet) -> dict[str, Tensor]:
    """input_blocks, middle_block, output_blocks: one number for each convolution, residual block or downsampling."""
    state, result = unet.state_dict(), {}
    for ours, theirs in (
        ("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
        ("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"),
    ):  # fmt: skip
        result |= {f"{theirs}.{key}": value for key, value in _take(state, ours).items()}
    number = 1
    for b, block in enumerate(unet.down_blocks):
        for r in range(len(block.resnets)):
            result |= _resnet(state, f"down_blocks.{b}.resnets.{r}", f"input_blocks.{number}.0", RESNET)
            attention = _take(state, f"down_blocks.{b}.attentions.{r}")
            result |= {f"input_blocks.{number}.1.{key}": value for key, value in attention.items()}
            number += 1
        if block.downsamplers is not None:
            down = _take(state, f"down_blocks.{b}.downsamplers.0.conv")
            result |= {f"input_blocks.{number}.0.op.{key}": value for key, value in down.items()}
            number += 1
    for r in (0, 1):
        result |= _resnet(state, f"mid_block.resnets.{r}", f"middle_block.{2 * r}", RESNET)
    middle = _take(state, "mid_block.attentions.0")
    result |= {f"middle_block.1.{key}": value for key, value in middle.items()}
    number = 0
    for b, block in enumerate(unet.up_blocks):
        for r in range(len(block.resnets)):
            result |= _resnet(state, f"up_blocks.{b}.resnets.{r}", f"output_blocks.{number}.0", RESNET)
            attention = _take(state, f"up_blocks.{b}.attentions.{r}")
            result |= {f"output_blocks.{number}.1.{key}": value for key, value in attention.items()}
            if block.upsamplers is not None and r == len(block.resnets) - 1:
                place = 2 if attention else 1
                up = _take(state, f"up_blocks.{b}.upsamplers.0.conv")
                result |= {f"output_blocks.{number}.{place}.conv.{key}": value for key, value in up.items()}
            number += 1
    return result


def vae_tensors(vae) -> dict[str, Tensor]:
    state, result = vae.state_dict(), {}
    names = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "nin_shortcut"}
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    count = len(vae.config.block_out_channels)
    for key in ("quant_conv", "post_quant_conv"):
        result |= {f"{key}.{kind}": value for kind, value in _take(state, key).items()}
    for half, blocks, down in (("encoder", "down_blocks", True), ("decoder", "up_blocks", False)):
        for ours, theirs in (("conv_in", "conv_in"), ("conv_norm_out", "norm_out"), ("conv_out", "conv_out")):
            result |= {f"{half}.{theirs}.{kind}": value for kind, value in _take(state, f"{half}.{ours}").items()}
        for b in range(count):
            # latent diffusion counts a decoder's levels from the finest
            target = f"{half}.down.{b}" if down else f"{half}.up.{count - 1 - b}"
            for r in range(vae.config.layers_per_block + (0 if down else 1)):
                result |= _resnet(state, f"{half}.{blocks}.{b}.resnets.{r}", f"{target}.block.{r}", names)
            sampler = ("downsamplers", "downsample") if down else ("upsamplers", "upsample")
            found = _take(state, f"{half}.{blocks}.{b}.{sampler[0]}.0.conv")
            result |= {f"{target}.{sampler[1]}.conv.{kind}": value for kind, value in found.items()}
        for r in (0, 1):
            result |= _resnet(state, f"{half}.mid_block.resnets.{r}", f"{half}.mid.block_{r + 1}", names)
        for key, value in _take(state, f"{half}.mid_block.attentions.0").items():
            layer, kind = key.rsplit(".", 1)
            if layer != "group_norm" and kind == "weight":  # a 1x1 convolution there
                value = value[:, :, None, None]
            result[f"{half}.mid.attn_1.{attention[layer]}.{kind}"] = value
    return result


def clip_tensors(clip) -> dict[str, Tensor]:
    state = clip.state_dict()
    vision = _take(state, "vision_model")
    result = {
        "class_embedding": vision["embeddings.class_embedding"],
        "conv1.weight": vision["embeddings.patch_embedding.weight"],
        "positional_embedding": vision["embeddings.position_embedding.weight"],
        "proj": state["visual_projection.weight"].T,
    }
    for kind in ("weight", "bias"):
        result[f"ln_pre.{kind}"] = vision[f"pre_layrnorm.{kind}"]
        result[f"ln_post.{kind}"] = vision[f"post_layernorm.{kind}"]
        for layer in range(clip.config.num_hidden_layers):
            own, target = _take(vision, f"encoder.layers.{layer}"), f"transformer.resblocks.{layer}"
            parts = [own[f"self_attn.{name}_proj.{kind}"] for name in "qkv"]
            result[f"{target}.attn.in_proj_{kind}"] = torch.cat(parts)
            result[f"{target}.attn.out_proj.{kind}"] = own[f"self_attn.out_proj.{kind}"]
            result[f"{target}.ln_1.{kind}"] = own[f"layer_norm1.{kind}"]
            result[f"{target}.ln_2.{kind}"] = own[f"layer_norm2.{kind}"]
            result[f"{target}.mlp.c_fc.{kind}"] = own[f"mlp.fc1.{kind}"]
            result[f"{target}.mlp.c_proj.{kind}"] = own[f"mlp.fc2.{kind}"]
    return result


def original_tensors(unet, vae, clip, projection) -> dict[str, Tensor]:
    """The state dict of a checkpoint, with what a file holds beside the weights that are used."""
    tensors = {f"model.diffusion_model.{key}": value for key, value in unet_tensors(unet).items()}
    tensors |= {f"first_stage_model.{key}": value for key, value in vae_tensors(vae).items()}
    tensors |= {f"cond_stage_model.model.visual.{key}": value for key, value in clip_tensors(clip).items()}
    tensors |= {f"cc_projection.{key}": value for key, value in projection.state_dict().items()}
    tensors["cond_stage_model.model.logit_scale"] = torch.tensor(1.0)
    tensors["cond_stage_model.model.token_embedding.weight"] = torch.zeros(3, 2)
    tensors["first_stage_model.loss.logvar"] = torch.tensor(0.0)
    return {key: value.detach().clone() for key, value in tensors.items()}
