"""The keys of a config that name a teacher, and the teacher that they name."""

from dataclasses import dataclass, field, fields
from typing import Any

import torch

import threestudio

from .contract import Teacher
from .loading import LoadingOptions
from .pretrained import load_teacher


@dataclass
class TeacherConfig:
    """Which diffusion model a guidance asks, and how it is loaded."""

    # a registered teacher; "" is the diffusion model that the next keys name
    teacher_type: str = ""
    teacher: dict[str, Any] = field(default_factory=dict)  # the config of a `teacher_type`
    # a local folder or a hub id, of latent diffusion or of a pixel-space model as DeepFloyd IF
    pretrained_model_name_or_path: str = "stabilityai/stable-diffusion-2-1-base"
    half_precision_weights: bool = True  # float16; always float32 on a CPU
    enable_attention_slicing: bool = False  # less memory, slower
    enable_channels_last_format: bool = False
    enable_sequential_cpu_offload: bool = False  # the denoiser's weights stay on the CPU between uses
    enable_memory_efficient_attention: bool = False  # accepted; torch's fused attention is always used


def loading_options(cfg: TeacherConfig) -> LoadingOptions:
    """How the config says that denoisers are loaded."""
    return LoadingOptions(**{option.name: getattr(cfg, option.name) for option in fields(LoadingOptions)})


def configured_teacher(cfg: TeacherConfig, device: torch.device, name: str = "") -> Teacher:
    """The teacher of a config; `name` is a folder, a file or a hub id in place of the config's own. Raises as
    `pretrained.load_teacher`."""
    if cfg.teacher_type:
        return threestudio.find(cfg.teacher_type)(cfg.teacher)
    name = name or cfg.pretrained_model_name_or_path
    threestudio.info(f"Loading the teacher {name} ...")
    return load_teacher(name, device, loading_options(cfg))
