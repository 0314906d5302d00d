"""Guidances by MVDream under the names, keys and defaults of ScaleDreamer and of threestudio-mvdream.

Any other guidance takes a multi-view teacher too, with `n_view`; what these add is how they name the model.
"""

from dataclasses import dataclass
from functools import partial

import threestudio
from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import Scheduled, check_choice

from ..teachers.configured import configured_teacher
from ..teachers.contract import Teacher
from ..teachers.multi_view.hub import PUBLISHED, fetch_published
from .guidance import DistillationGuidance, register_names
from .reconstruction import reconstruction_gradient

CAMERA_CONDITIONS = ("rotation",)


class MVDreamGuidance(DistillationGuidance):
    """A guidance whose teacher is one of MVDream's published models, or any multi-view model in its place."""

    @dataclass
    class Config(DistillationGuidance.Config):
        model_name: str = "sd-v2.1-base-4view"  # or sd-v1.5-4view; fetched where the next two name nothing
        ckpt_path: str | None = None  # a file of MVDream's weights, or a model folder
        pretrained_model_name_or_path: str = ""  # a folder, file or hub id; ckpt_path goes before it
        camera_condition_type: str = "rotation"  # only this: c2w, its position on the unit sphere
        view_dependent_prompting: bool = False
        n_view: int = 4  # views of a set
        image_size: int | None = None  # side of the pictures that the teacher sees, pixels; null: its own (256)
        shared_timesteps: bool = True  # one timestep, and one shift, for all sets of a step

    cfg: Config

    def configure(self, teacher: Teacher | None = None) -> None:
        from ..teachers.multi_view.teacher import MultiViewTeacher

        cfg = self.cfg
        check_choice("camera_condition_type", cfg.camera_condition_type, CAMERA_CONDITIONS)
        check_choice("model_name", cfg.model_name, PUBLISHED)
        super().configure(teacher)
        if not isinstance(self.teacher, MultiViewTeacher):
            name = cfg.ckpt_path or cfg.pretrained_model_name_or_path or cfg.teacher_type
            raise UserError(f"guidance: expected a multi-view model, got {name or type(self.teacher).__name__}")
        if cfg.image_size is not None:
            self.teacher = self.teacher.at_image_size(cfg.image_size)

    def _build_teacher(self) -> Teacher:
        cfg = self.cfg
        name = cfg.ckpt_path or cfg.pretrained_model_name_or_path
        if not name and not cfg.teacher_type:
            name = fetch_published(cfg.model_name)
        return configured_teacher(cfg, self.device, name)


# ASD with ScaleDreamer's keys and defaults; its configs all say plus_random: true
register_names(MVDreamGuidance, {"mvdream-asynchronous-score-distillation-guidance": {"plus_random": False}})


@threestudio.register("mvdream-multiview-diffusion-guidance")
class MultiviewDiffusionGuidance(MVDreamGuidance):
    """SDS by MVDream, with threestudio-mvdream's keys and defaults."""

    @dataclass
    class Config(MVDreamGuidance.Config):
        method: str = "sds"
        guidance_scale: Scheduled = 50.0
        recon_loss: bool = True  # through the clean latents, see reconstruction.py; false: SDS with w(t) = s_t^2
        recon_std_rescale: float = 0.5  # share of the clean latents at the spread without guidance, in [0, 1]

    cfg: Config

    def configure(self, teacher: Teacher | None = None) -> None:
        cfg = self.cfg
        check_choice("method", cfg.method, ("sds",))
        if not 0 <= cfg.recon_std_rescale <= 1:
            raise UserError(f"recon_std_rescale: expected between 0 and 1, got {cfg.recon_std_rescale:g}")
        super().configure(teacher)
        if cfg.recon_loss:
            self.method = partial(reconstruction_gradient, n_view=cfg.n_view, std_rescale=float(cfg.recon_std_rescale))
