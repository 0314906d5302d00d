"""`stable-diffusion-unified-guidance`: SDS or VSD by one key, with threestudio's names of keys and losses.

It is composed of the guidances of this folder: its own keys are theirs under other names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

import threestudio
from threestudio.utils.base import BaseModule, BaseObject
from threestudio.utils.config import parse_structured
from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import Scheduled, check_choice

from ..teachers.contract import Teacher
from ..teachers.low_rank import LowRankTeacher
from .guidance import DistillationGuidance, losses_named
from .variational import VariationalScoreDistillationGuidance

GUIDANCE_TYPES = ("sds", "vsd")
# Weighting strategies by their names here; uniform is the same everywhere.
UNIFIED_WEIGHTING = {"dreamfusion": "unified_dreamfusion", "uniform": "uniform", "fantasia3d": "unified_fantasia3d"}
# Keys of both guidances' configs whose values are taken over as they are.
SHARED_KEYS = (
    "pretrained_model_name_or_path", "guidance_scale", "min_step_percent", "max_step_percent", "grad_clip",
    "half_precision_weights",
)  # fmt: skip


@dataclass
class UnifiedConfig(BaseModule.Config):
    """What threestudio's unified guidances share."""

    guidance_type: str = "sds"  # sds or vsd
    pretrained_model_name_or_path: str = ""  # a folder or a hub id
    guidance_scale: Scheduled = 100.0  # s of eps_u + s (eps_c - eps_u); a number or a schedule
    weighting_strategy: str = "dreamfusion"  # w(t): dreamfusion, uniform or fantasia3d, see weighting.weight
    min_step_percent: Scheduled = 0.02  # fractions of the diffusion schedule: numbers or schedules
    max_step_percent: Scheduled = 0.98
    grad_clip: Scheduled | None = None  # largest entry of the gradient; a number, a schedule or null
    return_rgb_1step_orig: bool = False  # only false is supported
    return_rgb_multistep_orig: bool = False  # only false is supported
    n_rgb_multistep_orig_steps: int = 4  # accepted
    half_precision_weights: bool = True  # float16; always float32 on a CPU
    vsd_phi_model_name_or_path: str | None = None  # vsd: the network under the adapters; null: the teacher's own
    vsd_guidance_scale_phi: float = 1.0  # vsd: s between the renders' score with the camera and without
    vsd_use_lora: bool = True  # only true is supported
    vsd_lora_cfg_training: bool = False  # vsd: a tenth of the samples trains without its camera
    vsd_lora_n_timestamp_samples: int = 1  # vsd: noise levels of each render that a step trains on
    vsd_use_camera_condition: bool = True  # only true is supported
    vsd_camera_condition_type: str | None = "extrinsics"  # vsd: extrinsics or mvp


def check_unified(cfg: UnifiedConfig) -> None:
    """Raises ValueError, naming the key, for a value that is unknown or not supported."""
    check_choice("guidance_type", cfg.guidance_type, GUIDANCE_TYPES)
    check_choice("weighting_strategy", cfg.weighting_strategy, UNIFIED_WEIGHTING)
    for key, supported in (
        ("return_rgb_1step_orig", False),
        ("return_rgb_multistep_orig", False),
        ("vsd_use_lora", True),
        ("vsd_use_camera_condition", True),
    ):
        value = getattr(cfg, key)
        read = cfg.guidance_type == "vsd" or not key.startswith("vsd_")
        if read and value is not supported:
            raise UserError(f"{key}: not supported; expected {str(supported).lower()}, got {str(value).lower()}")


def unified_keys(cfg: UnifiedConfig) -> dict[str, Any]:
    """The keys of a distillation guidance that say the same; one timestep for all samples of a step, as there."""
    return {
        **{key: getattr(cfg, key) for key in SHARED_KEYS},
        "weighting_strategy": UNIFIED_WEIGHTING[cfg.weighting_strategy],
        "shared_timesteps": True,
    }


def variational_keys(cfg: UnifiedConfig) -> dict[str, Any]:
    """The keys of VSD's guidance that say the same as the vsd_* ones."""
    return {
        "pretrained_model_name_or_path_lora": cfg.vsd_phi_model_name_or_path or "",
        "guidance_scale_lora": cfg.vsd_guidance_scale_phi,
        "lora_cfg_training": cfg.vsd_lora_cfg_training,
        "lora_n_timestamp_samples": cfg.vsd_lora_n_timestamp_samples,
        "camera_condition_type": cfg.vsd_camera_condition_type,
    }


LOSSES = {
    "loss_sds": "loss_sd", "loss_sds_img": "loss_sd_img",
    "loss_vsd": "loss_sd", "loss_vsd_img": "loss_sd_img", "loss_lora": "loss_train_phi",
}  # fmt: skip


def renamed(output: dict[str, Any]) -> dict[str, Any]:
    """A guidance's output with the losses' names of the unified guidances."""
    return {LOSSES.get(key, key): value for key, value in output.items()}


def trained_group(guidance: BaseObject | BaseModule) -> dict[str, float] | None:
    """The optimizer's arguments for what a guidance trains; None for one that trains nothing."""
    return guidance.optimizer_group if isinstance(guidance, VariationalScoreDistillationGuidance) else None


@threestudio.register("stable-diffusion-unified-guidance")
class StableDiffusionUnifiedGuidance(BaseModule):
    """Takes a `teacher`, and one of the renders for vsd, in place of those that the config names."""

    @dataclass
    class Config(UnifiedConfig):
        pretrained_model_name_or_path: str = "runwayml/stable-diffusion-v1-5"
        view_dependent_prompting: bool = True  # ", front view" and the like, by the camera
        n_view: int = 1  # views of a set, for a multi-view model; threestudio's has no such key
        controlnet_model_name_or_path: str | None = None  # only null is supported
        preprocessor: str | None = None  # accepted
        control_scale: float = 1.0  # accepted
        lora_model_name_or_path: str | None = None  # only null is supported
        enable_memory_efficient_attention: bool = False  # accepted; torch's fused attention is always used
        enable_sequential_cpu_offload: bool = False  # the denoiser's weights stay on the CPU between uses
        enable_attention_slicing: bool = False  # less memory, slower
        enable_channels_last_format: bool = False
        token_merging: bool = False  # only false is supported
        token_merging_params: dict | None = field(default_factory=dict)
        sqrt_anneal: bool = False  # HiFA: one timestep, from max to min as the square root of the run's progress
        trainer_max_steps: int = 25000  # the length of the run, for sqrt_anneal
        use_img_loss: bool = True  # HiFA: also the distance between the render and the guided clean image

    cfg: Config
    learns_from_renders = True  # for Picard iterations: weights of vsd are no part of the scene

    @classmethod
    def returned_losses(cls, cfg: Any = None) -> tuple[str, ...]:
        """X of each loss_X of a step with this config, the method's own first; without one, of any."""
        checked = parse_structured(cls.Config, cfg)
        trained = cfg is None or checked.guidance_type == "vsd"
        return (*losses_named("sd", cfg is None or checked.use_img_loss), *(["train_phi"] if trained else []))

    def configure(self, teacher: Teacher | None = None, render_teacher: LowRankTeacher | None = None) -> None:
        cfg = self.cfg
        check_unified(cfg)
        for key in ("controlnet_model_name_or_path", "lora_model_name_or_path", "token_merging"):
            value = getattr(cfg, key)
            if value:
                raise UserError(f"{key}: not supported, got {value}")
        own = (
            "view_dependent_prompting", "n_view", "enable_sequential_cpu_offload", "enable_attention_slicing",
            "enable_channels_last_format", "sqrt_anneal", "trainer_max_steps", "use_img_loss",
        )  # fmt: skip
        keys = {**unified_keys(cfg), **{key: getattr(cfg, key) for key in own}, "guidance_perp_neg": -1.0}
        if cfg.guidance_type == "vsd":
            keys.update(variational_keys(cfg))
            self.guidance: Any = VariationalScoreDistillationGuidance(keys, teacher, render_teacher)
        else:
            self.guidance = DistillationGuidance({**keys, "method": "sds"}, teacher)

    @property
    def optimizer_group(self) -> dict[str, float] | None:
        """The optimizer's arguments for the weights that vsd trains; None with sds."""
        return trained_group(self.guidance)

    def forward(
        self,
        rgb: Tensor,  # [B, H, W, 3] in [0, 1], or latents [B, h, w, C] with `rgb_as_latents`
        prompt_utils: Any,
        rgb_as_latents: bool = False,
        guidance_eval: bool = False,  # also return pictures of what the teacher sees
        **batch: Any,  # the host's: elevation, azimuth, camera_distances, and mvp_mtx and c2w for vsd
    ) -> dict[str, Any]:
        """loss_sd; loss_sd_img with use_img_loss; loss_train_phi with vsd; figures of `distill`."""
        options = {"rgb_as_latents": rgb_as_latents, "guidance_eval": guidance_eval}
        return renamed(self.guidance(rgb, prompt_utils, **batch, **options))
