"""`zero123-unified-guidance`: guidance by zero123 under threestudio's keys and names of losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

import threestudio
from threestudio.data.reference_views import ReferenceViews
from threestudio.utils.base import BaseModule
from threestudio.utils.config import parse_structured
from threestudio.utils.value_checks import Scheduled

from ..distillation.unified import (
    UnifiedConfig,
    check_unified,
    renamed,
    trained_group,
    unified_keys,
    variational_keys,
)
from ..teachers.contract import Teacher
from ..teachers.low_rank import LowRankTeacher
from .guidance import INPUT_VIEW_KEYS, InputViewConfig, NovelViewGuidance
from .variational_guidance import NovelViewVariationalGuidance


@threestudio.register("zero123-unified-guidance")
class Zero123UnifiedGuidance(BaseModule):
    """Score distillation by a novel-view model, SDS or VSD by one key; see `unified.UnifiedConfig`.

    Takes a `teacher`, and the `views` that it goes by, in place of those that the config names.
    """

    @dataclass
    class Config(InputViewConfig, UnifiedConfig):
        pretrained_model_name_or_path: str = "bennyguo/zero123-diffusers"
        guidance_scale: Scheduled = 5.0

    cfg: Config
    learns_from_renders = True  # for Picard iterations: weights of vsd are no part of the scene

    @classmethod
    def returned_losses(cls, cfg: Any = None) -> tuple[str, ...]:
        """X of each loss_X of a step with this config, the method's own first; without one, of any."""
        trained = cfg is None or parse_structured(cls.Config, cfg).guidance_type == "vsd"
        return ("sd", "train_phi") if trained else ("sd",)

    def configure(
        self,
        teacher: Teacher | None = None,
        views: ReferenceViews | None = None,
        render_teacher: LowRankTeacher | None = None,
    ) -> None:
        check_unified(self.cfg)
        keys = {**unified_keys(self.cfg), **{key: self.cfg[key] for key in INPUT_VIEW_KEYS}}
        if self.cfg.guidance_type == "vsd":
            keys.update(variational_keys(self.cfg))
            self.guidance: Any = NovelViewVariationalGuidance(keys, teacher, render_teacher, views)
        else:
            self.guidance = NovelViewGuidance({**keys, "method": "sds"}, teacher, views)

    @property
    def optimizer_group(self) -> dict[str, float] | None:
        """The optimizer's arguments for the weights that vsd trains; None with sds."""
        return trained_group(self.guidance)

    def forward(
        self,
        rgb: Tensor,  # [B, H, W, 3] in [0, 1], or latents [B, h, w, C] with `rgb_as_latents`
        prompt_utils: Any = None,  # has no part in it
        rgb_as_latents: bool = False,
        guidance_eval: bool = False,  # also return pictures of what the teacher sees
        **batch: Any,  # the host's: elevation, azimuth, camera_distances, and mvp_mtx and c2w for vsd
    ) -> dict[str, Any]:
        """loss_sd; loss_train_phi with vsd; and the figures of `distill`."""
        options = {"rgb_as_latents": rgb_as_latents, "guidance_eval": guidance_eval}
        return renamed(self.guidance(rgb, prompt_utils, **batch, **options))
