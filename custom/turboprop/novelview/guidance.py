"""Guidances that know pictures of the object: a novel-view model says how it looks from each camera.

All are the distillation guidance of the text teachers with another teacher and another condition; the methods
(`method`: sds, asd, csd, normalized_csd, sjc) are the same pure functions. zero-1-to-3: Liu et al. 2023, arXiv
2303.11328.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

import threestudio
from threestudio.data.reference_views import ReferenceViews
from threestudio.utils.config import parse_structured
from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import Scheduled

from ..distillation.guidance import DistillationGuidance
from ..distillation.methods import Conditions
from ..teachers.contract import Cameras, Teacher
from .framing import FramingConfig, check_framing
from .model import EncodedView
from .posed_pictures import CameraPlace, load_pictures, nearest_views
from .teacher import NovelViewTeacher


class InputViews:
    """The pictures that a novel-view teacher goes by, encoded once, and their cameras."""

    def __init__(self, teacher: NovelViewTeacher, views: ReferenceViews) -> None:
        self.teacher = teacher
        self.views = views
        size = teacher.image_size
        self.encoded: EncodedView = teacher.encode_view(views.at(size, size).on_white().permute(0, 3, 1, 2))

    def conditions(self, cameras: Cameras) -> Conditions:
        """What the teacher is asked about B cameras: each goes by the picture that was taken from nearest."""
        views = self.views
        which = nearest_views(views, cameras.elevation.cpu(), cameras.azimuth.cpu())
        cond_camera = (views.elevation[which], views.azimuth[which], views.distances[which])
        chosen = self.encoded.chosen(which.to(self.teacher.device))
        camera = (cameras.elevation, cameras.azimuth, cameras.distance)
        positive = self.teacher.condition_of_view(chosen, *cond_camera, *camera)
        return Conditions(positive, self.teacher.unconditional(positive))


@dataclass
class InputViewConfig:
    """The keys of the pictures that a guidance goes by."""

    # a picture with a transparent background; or several with their cameras, see posed_pictures
    cond_image_path: str = ""
    cond_elevation_deg: float = 0.0  # where a single picture was taken from, degrees
    cond_azimuth_deg: float = 0.0  # degrees
    cond_camera_distance: float = 1.2  # in the unit that cameras of the scene have
    cond_fovy_deg: float = 49.134  # of a folder of pictures, degrees; by it each has to see the world's origin
    # how a single picture is centred and scaled, see framing; as the data has it, or both see different pictures
    framing: dict = field(default_factory=lambda: {"mode": "keep"})


INPUT_VIEW_KEYS = tuple(InputViewConfig.__dataclass_fields__)


@dataclass
class OriginalModelConfig:
    """Keys of threestudio's zero123-guidance that nothing here needs: a config of it may name another guidance."""

    pretrained_config: str = ""  # the model's file of sizes; not read, the weights tell them
    vram_O: bool = True  # not read; the autoencoder's decoder is kept


def input_pictures(cfg: Any) -> ReferenceViews:
    """The pictures that a guidance's keys of InputViewConfig name. Raises UserError with the key, without its part."""
    framing = parse_structured(FramingConfig, cfg.framing)
    check_framing(framing, "framing")
    place = CameraPlace(cfg.cond_elevation_deg, cfg.cond_azimuth_deg, cfg.cond_camera_distance, cfg.cond_fovy_deg)
    return load_pictures(cfg.cond_image_path, place, framing, "cond_image_path")


@threestudio.register("zero123-dino-guidance")
class NovelViewGuidance(DistillationGuidance):
    """A novel-view model trained here, or any that this project reads.

    Takes a `teacher`, and the `views` that it goes by, in place of those that the config names.
    """

    @dataclass
    class Config(InputViewConfig, OriginalModelConfig, DistillationGuidance.Config):
        method: str = "sds"
        pretrained_model_name_or_path: str = "assets/novelview/mini-novelview"  # a folder, a hub id or a .ckpt
        guidance_scale: Scheduled = 3.0

    cfg: Config
    trained_method: ClassVar[str] = "zero123-dino-vsd-guidance"
    fourth_number: ClassVar[str | None] = None  # of the model's relative camera; None: as the model says

    def configure(self, teacher: Teacher | None = None, views: ReferenceViews | None = None) -> None:
        super().configure(teacher)
        self.input_views = open_input_views(self.cfg, self.teacher, views)

    def _build_teacher(self) -> Teacher:
        if self.cfg.teacher_type:
            return super()._build_teacher()
        return load_novel_view_teacher(self.cfg, self.device, self.fourth_number)

    def conditions(self, prompt_utils: Any, cameras: Cameras) -> Conditions:
        return self.input_views.conditions(cameras)

    def __call__(
        self,
        rgb: Tensor,  # [B, H, W, 3] in [0, 1], or latents [B, h, w, C] with `rgb_as_latents`
        prompt_utils: Any = None,  # has no part in it; systems for prompts give it
        *,
        elevation: Tensor,  # [B], degrees
        azimuth: Tensor,  # [B], degrees
        camera_distances: Tensor,  # [B]
        rgb_as_latents: bool = False,
        guidance_eval: bool = False,  # also return pictures of what the teacher sees
        **kwargs: Any,  # the rest of the batch
    ) -> dict[str, Any]:
        """One step's losses and figures, as `distill` names them; and eval with guidance_eval."""
        cameras = (elevation, azimuth, camera_distances)
        return super().__call__(rgb, prompt_utils, *cameras, rgb_as_latents, guidance_eval, **kwargs)


def open_input_views(cfg: InputViewConfig, teacher: Teacher, views: ReferenceViews | None) -> InputViews:
    """The pictures of a guidance, given or named by its config, encoded by its teacher.

    Raises UserError where the teacher is no novel-view model, or where a picture is wrong.
    """
    if not isinstance(teacher, NovelViewTeacher):
        raise UserError(f"teacher_type: expected a novel-view model, got a {type(teacher).__name__}")
    return InputViews(teacher, input_pictures(cfg) if views is None else views)


def load_novel_view_teacher(cfg: Any, device: torch.device, fourth_number: str | None = None) -> NovelViewTeacher:
    """The teacher that a guidance's config names."""
    threestudio.info(f"Loading the novel-view model {cfg.pretrained_model_name_or_path} ...")
    return NovelViewTeacher.from_pretrained(
        cfg.pretrained_model_name_or_path, device, cfg.half_precision_weights, fourth_number
    )


@threestudio.register("zero123-guidance")
class Zero123Guidance(NovelViewGuidance):
    """threestudio's name, keys and defaults."""

    @dataclass
    class Config(NovelViewGuidance.Config):
        pretrained_model_name_or_path: str = "load/zero123/105000.ckpt"
        pretrained_config: str = "load/zero123/sd-objaverse-finetune-c_concat-256.yaml"
        cond_image_path: str = "load/images/hamburger_rgba.png"
        guidance_scale: Scheduled = 5.0
        half_precision_weights: bool = False


@threestudio.register("stable-zero123-guidance")
class StableZero123Guidance(Zero123Guidance):
    """For stable-zero123, whose relative camera has the input's polar angle in place of the distances' difference."""

    @dataclass
    class Config(Zero123Guidance.Config):
        pretrained_model_name_or_path: str = "load/zero123/stable-zero123.ckpt"

    cfg: Config
    fourth_number = "input_polar_angle"
