"""Parts of a model folder in diffusers' layout, and the teacher that a folder holds."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from threestudio.utils.errors import UserError, first_line

from .contract import TextCondition
from .weights import PIXEL_PARTS, model_folder, part_folder, weight_variant


@dataclass(frozen=True)
class LoadingOptions:
    """How a denoiser is loaded."""

    half_precision_weights: bool = False  # float16 weights and compute; on a CPU always float32
    enable_attention_slicing: bool = False  # less memory, slower
    enable_channels_last_format: bool = False
    enable_sequential_cpu_offload: bool = False  # the weights stay on the CPU between uses

    def dtype(self, device: torch.device) -> torch.dtype:
        return torch.float16 if self.half_precision_weights and device.type != "cpu" else torch.float32


DEFAULT_OPTIONS = LoadingOptions()


UNetInputs = tuple[Tensor, dict[str, Any]]  # a UNet's sample [B, C', h, w], and its keywords for the condition


def text_inputs(noisy: Tensor, condition: TextCondition) -> UNetInputs:  # [B, C, h, w]
    """How a text-to-image UNet is asked: the text is what its cross-attention looks at."""
    return noisy, {"encoder_hidden_states": condition.embeddings.to(noisy)}


@dataclass(frozen=True)
class Denoiser:
    """A network with its schedule."""

    unet: Any  # UNet2DConditionModel, or a MultiViewUNet
    alphas_cumprod: Tensor  # [T], float32
    prediction_type: str  # epsilon, v_prediction or sample
    multi_view: bool = False  # a MultiViewUNet: it has an embedding of cameras, and looks at sets of views
    # How a UNet2DConditionModel is asked, from noisy latents in its type and a condition of the teacher's.
    inputs: Callable[[Tensor, Any], UNetInputs] = text_inputs
    latents_taken: int = 1  # how many latents the network sees side by side: the noisy one, and an input view's


def load_denoiser(
    pretrained_model_name_or_path: str,  # a folder in diffusers' layout or a hub id
    device: torch.device | str,
    options: LoadingOptions,
    prefer_half: bool = False,  # fetch the fp16 variant's files where there are any
) -> Denoiser:
    """unet/ and scheduler/ of a model. Raises as `weights.model_folder`, and ValueError for a part that does not
    load."""
    from diffusers import DDPMScheduler, UNet2DConditionModel

    device = torch.device(device)
    folder = model_folder(pretrained_model_name_or_path, PIXEL_PARTS, prefer_half)
    dtype = options.dtype(device)
    variant = weight_variant(folder, "unet", prefer_half)
    unet = load_part(UNet2DConditionModel, folder, "unet", torch_dtype=dtype, variant=variant)
    scheduler = load_part(DDPMScheduler, folder, "scheduler")
    if options.enable_sequential_cpu_offload and device.type != "cpu":
        from accelerate import cpu_offload

        cpu_offload(unet, device)
    else:
        unet = unet.to(device)
    if options.enable_attention_slicing:
        unet.set_attention_slice("auto")
    if options.enable_channels_last_format:
        unet = unet.to(memory_format=torch.channels_last)
    return Denoiser(unet, scheduler.alphas_cumprod.to(device), scheduler.config.prediction_type)


def sample_side(unet_config: Any) -> int:
    """The side of a UNet's samples. Raises UserError where its config does not say it, or says two."""
    side = unet_config.sample_size
    if not isinstance(side, int):
        raise UserError(
            f"pretrained_model_name_or_path: sample_size of the unet: expected a number, got {side!r}; set it in "
            "unet/config.json"
        )
    return side


def load_part(part_class: Any, folder: Path, part: str, **options: Any) -> Any:
    """`part_class.from_pretrained` of a part of a model folder, with a failure in one line that names the part."""
    from safetensors import SafetensorError

    try:
        return part_class.from_pretrained(str(part_folder(folder, part)), **options)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, ImportError, SafetensorError) as error:
        reason = first_line(error)
        raise UserError(f"pretrained_model_name_or_path: cannot load {part} of {folder}: {reason}") from error
