"""`zero123-unified-guidance`: guidance by zero123 under threestudio's keys and names of losses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

import threestudio
from threestudio.data.reference_views import ReferenceViews
from threestudio.utils.base import BaseModule
from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import Scheduled

from ..distillation.unified import UnifiedConfig, check_unified, renamed, unified_keys
from ..teachers.contract import Teacher
from .guidance import NovelViewGuidance

CONDITION_KEYS = ("cond_image_path", "cond_elevation_deg", "cond_azimuth_deg", "cond_camera_distance", "framing")


@threestudio.register("zero123-unified-guidance")
class Zero123UnifiedGuidance(BaseModule):
    """Score distillation sampling by a novel-view model; see `unified.UnifiedConfig`.

    Takes a `teacher`, and the `views` that it goes by, in place of those that the config names.
    """

    @dataclass
    class Config(UnifiedConfig):
        guidance_type: str = "sds"  # only sds is supported: the renders' score of vsd knows text alone
        pretrained_model_name_or_path: str = "bennyguo/zero123-diffusers"
        guidance_scale: Scheduled = 5.0
        cond_image_path: str = ""  # see NovelViewGuidance, as the next four
        cond_elevation_deg: float = 0.0  # degrees
        cond_azimuth_deg: float = 0.0  # degrees
        cond_camera_distance: float = 1.2  # in the unit that cameras of the scene have
        framing: dict = field(default_factory=lambda: {"mode": "keep"})

    cfg: Config

    @classmethod
    def returned_losses(cls, cfg: Any = None) -> tuple[str, ...]:
        """X of each loss_X that every step returns."""
        return ("sd",)

    def configure(self, teacher: Teacher | None = None, views: ReferenceViews | None = None) -> None:
        check_unified(self.cfg)
        if self.cfg.guidance_type == "vsd":
            raise UserError("guidance_type: zero123-unified-guidance has sds alone; expected sds, got vsd")
        keys = {**unified_keys(self.cfg), **{key: self.cfg[key] for key in CONDITION_KEYS}, "method": "sds"}
        self.guidance = NovelViewGuidance(keys, teacher, views)

    def forward(
        self,
        rgb: Tensor,  # [B, H, W, 3] in [0, 1], or latents [B, h, w, C] with `rgb_as_latents`
        prompt_utils: Any = None,  # has no part in it
        rgb_as_latents: bool = False,
        guidance_eval: bool = False,  # also return pictures of what the teacher sees
        **batch: Any,  # the host's: elevation, azimuth, camera_distances
    ) -> dict[str, Any]:
        """loss_sd, and the figures of `distill`."""
        options = {"rgb_as_latents": rgb_as_latents, "guidance_eval": guidance_eval}
        return renamed(self.guidance(rgb, prompt_utils, **batch, **options))
