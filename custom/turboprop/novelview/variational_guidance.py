"""`zero123-dino-vsd-guidance`: Variational Score Distillation by a novel-view model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

import threestudio
from threestudio.data.reference_views import ReferenceViews
from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import Scheduled

from ..distillation.methods import Conditions
from ..distillation.variational import VariationalScoreDistillationGuidance
from ..teachers.contract import Cameras, Teacher
from ..teachers.loading import Denoiser
from ..teachers.low_rank import LowRankTeacher
from .condition import NovelViewCondition
from .guidance import InputViewConfig, OriginalModelConfig, load_novel_view_teacher, open_input_views
from .model import unet_inputs
from .teacher import NovelViewTeacher


@threestudio.register("zero123-dino-vsd-guidance")
class NovelViewVariationalGuidance(VariationalScoreDistillationGuidance):
    """The renders' score is that of the same model with adapters, asked about the same picture and camera.

    Beside its own relative camera the adapted network is told the scene's, as a text teacher's is. Takes a `teacher`,
    that of the renders, and the `views` that it goes by, in place of those that the config names.
    """

    @dataclass
    class Config(InputViewConfig, OriginalModelConfig, VariationalScoreDistillationGuidance.Config):
        pretrained_model_name_or_path: str = "assets/novelview/mini-novelview"  # a folder, a hub id or a .ckpt
        # the network that the adapters are put on; "" or the model's own name, no other
        pretrained_model_name_or_path_lora: str = ""
        guidance_scale: Scheduled = 3.0

    cfg: Config

    def configure(
        self,
        teacher: Teacher | None = None,
        render_teacher: LowRankTeacher | None = None,
        views: ReferenceViews | None = None,
    ) -> None:
        super().configure(teacher, render_teacher)
        self.input_views = open_input_views(self.cfg, self.teacher, views)

    def forward(self, rgb: Tensor, prompt_utils: Any = None, **batch: Any) -> dict[str, Any]:  # [B, H, W, 3]
        """One step's losses, as `VariationalScoreDistillationGuidance` has them. A prompt has no part in it."""
        return super().forward(rgb, prompt_utils, **batch)

    def _build_teacher(self) -> Teacher:
        return super()._build_teacher() if self.cfg.teacher_type else load_novel_view_teacher(self.cfg, self.device)

    def _build_render_teacher(self) -> LowRankTeacher:
        cfg, teacher = self.cfg, self.teacher
        if not isinstance(teacher, NovelViewTeacher):
            raise UserError(f"teacher_type: expected a novel-view model, got a {type(teacher).__name__}")
        if cfg.pretrained_model_name_or_path_lora not in ("", cfg.pretrained_model_name_or_path):
            raise UserError(
                'pretrained_model_name_or_path_lora: expected "" or the name of the novel-view model itself; '
                f"got {cfg.pretrained_model_name_or_path_lora}"
            )
        model = teacher.model
        denoiser = Denoiser(
            model.unet, model.alphas_cumprod, model.prediction_type, inputs=unet_inputs, latents_taken=2
        )
        return LowRankTeacher(denoiser, teacher, cfg.lora_rank)

    def conditions(
        self, prompt_utils: Any, cameras: Cameras, n_view: int | None = None
    ) -> Conditions[NovelViewCondition]:
        return self.input_views.conditions(cameras)

    def asked_of_renders(self, prompt_utils: Any, cameras: Cameras) -> NovelViewCondition:
        return self.input_views.conditions(cameras).positive
