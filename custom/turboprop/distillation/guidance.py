"""The distillation guidance: a teacher, a schedule and a method, as threestudio calls a guidance.

One class does the work of all methods that need a teacher alone. Most names differ in defaults only, so they are lines
of a table, and a method is swapped by one line of a config.
"""

from dataclasses import dataclass, field, make_dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.utils.base import BaseModule, BaseObject
from threestudio.utils.config import parse_structured
from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import check_choice

from ..teachers.configured import TeacherConfig, configured_teacher
from ..teachers.contract import Cameras, Teacher
from .methods import METHODS, Conditions, Method
from .renders import renders_for, text_conditions
from .schedule import Schedule, ScheduleConfig
from .step import distill, drawn_query, step_pictures
from .weighting import WEIGHTING_STRATEGIES


@dataclass
class GuidanceConfig(TeacherConfig, ScheduleConfig):
    """The keys of every guidance."""

    view_dependent_prompting: bool = True  # ", front view" and the like, by the camera
    # factor on perp-neg's strengths, at most 0; 0 turns perp-neg off, the prompt processor's use_perp_neg on
    guidance_perp_neg: float = -0.5
    weighting_strategy: str = "sds"  # w(t): sds, uniform or fantasia3d
    use_img_loss: bool = False  # HiFA: also the distance between the render and the guided clean image
    max_items_eval: int = 4  # how many samples of a batch guidance_eval pictures


def check_guidance_config(cfg: GuidanceConfig) -> None:
    """Raises UserError, naming the key, for a value that no step can be made with."""
    check_choice("weighting_strategy", cfg.weighting_strategy, WEIGHTING_STRATEGIES)
    if cfg.guidance_perp_neg > 0:
        raise UserError(f"guidance_perp_neg: expected a number of at most 0, got {cfg.guidance_perp_neg:g}")


def losses_named(name: str, image_loss: bool) -> tuple[str, ...]:
    """X of each loss_X that `distill` returns for a method's name."""
    return (name, f"{name}_img") if image_loss else (name,)


def conditions_of(
    cfg: GuidanceConfig, teacher: Teacher, prompt_utils: Any, cameras: Cameras, n_view: int | None = None
) -> Conditions:
    """What a teacher is asked about B cameras, by a guidance's config; in sets of `n_view` where that is given."""
    return text_conditions(
        teacher,
        prompt_utils,
        cameras,
        n_view=n_view or cfg.n_view,
        view_dependent=cfg.view_dependent_prompting,
        perp_neg=cfg.guidance_perp_neg,
    )


class TeacherGuidance(BaseObject):
    """What guidances share that need a teacher alone; each says its method by `method_for`.

    `configure` takes a `teacher` in place of one that the config names.
    """

    @dataclass
    class Config(BaseObject.Config, GuidanceConfig):
        pass

    cfg: Config
    loss_name: str  # X of loss_X
    # whether guidance_scale is threestudio's: eps_c + s (eps_c - eps_u), the usual form only with perp-neg
    upstream_scale: ClassVar[bool] = False
    refuses_latents: ClassVar[str] = ""  # the name of a guidance of rendered images alone

    def configure(self, teacher: Teacher | None = None) -> None:
        check_guidance_config(self.cfg)
        self.weighting = self.cfg.weighting_strategy
        self.teacher = self._build_teacher() if teacher is None else teacher
        self.schedule = self._build_schedule()

    def _build_teacher(self) -> Teacher:
        return configured_teacher(self.cfg, self.device)

    def _build_schedule(self) -> Schedule:
        return Schedule(self.cfg, self.teacher.num_timesteps, self.teacher.device)

    def usual_scale(self, scale: float, conditions: Conditions) -> float:
        """A guidance scale of the config in the form eps_u + s (eps_c - eps_u)."""
        return scale + 1.0 if self.upstream_scale and conditions.negatives is None else scale

    def conditions(self, prompt_utils: Any, cameras: Cameras) -> Conditions:
        """What the teacher is asked about B cameras."""
        return conditions_of(self.cfg, self.teacher, prompt_utils, cameras)

    def method_for(self, conditions: Conditions) -> Method:
        """The method of a step that asks about these conditions."""
        raise NotImplementedError

    def __call__(
        self,
        rgb: Tensor,  # [B, H, W, 3] in [0, 1], or latents [B, h, w, C] with `rgb_as_latents`
        prompt_utils: Any,
        elevation: Tensor,  # [B], degrees
        azimuth: Tensor,  # [B], degrees
        camera_distances: Tensor,  # [B]
        rgb_as_latents: bool = False,
        guidance_eval: bool = False,  # also return pictures of what the teacher sees
        c2w: Tensor | None = None,  # [B, 4, 4], for teachers that want to know
        fovy: Tensor | None = None,  # [B], radians
        **kwargs: Any,  # the rest of the batch
    ) -> dict[str, Any]:
        """One step's losses and figures, as `distill` names them; min_step, max_step; eval with guidance_eval."""
        if rgb_as_latents and self.refuses_latents:
            raise UserError(f"rgb_as_latents: {self.refuses_latents} has no latents; expected rendered images")
        cameras = Cameras(elevation, azimuth, camera_distances, c2w, fovy)
        renders = renders_for(self.teacher, rgb, rgb_as_latents)
        conditions = self.conditions(prompt_utils, cameras)
        scale = self.usual_scale(self.schedule.guidance_scale, conditions)
        query = drawn_query(self.schedule, self.teacher, renders.latents, conditions, scale, self.weighting)
        method, clip = self.method_for(conditions), self.schedule.grad_clip
        distilled = distill(self.loss_name, method, query, renders, clip, self.cfg.use_img_loss)
        output = {**distilled.output, **self.schedule.range()}
        if guidance_eval:
            output["eval"] = step_pictures(distilled, cameras, self.cfg.max_items_eval, self.cfg.n_view)
        return output

    @property
    def latent_size(self) -> int:
        """The side of the latents that the teacher is asked about."""
        return self.teacher.latent_size

    @torch.no_grad()
    def decode_latents(
        self,
        latents: Tensor,  # [B, C, H, W]
        latent_height: int | None = None,
        latent_width: int | None = None,
    ) -> Tensor:
        """Pictures [B, 3, h, w] in [0, 1] of latents, resized before to `latent_height` and `latent_width`.

        Both are the teacher's own side where they are not given.
        """
        size = (latent_height or self.latent_size, latent_width or self.latent_size)
        resized = F.interpolate(latents.float(), size, mode="bilinear", align_corners=False)
        return (self.teacher.decode(resized) * 0.5 + 0.5).clamp(0, 1)


class DistillationGuidance(TeacherGuidance):
    """A distillation method by the key `method`, a teacher, and the schedule between them."""

    @dataclass
    class Config(TeacherGuidance.Config):
        method: str = "asd"  # asd, sds, csd, normalized_csd or sjc; vsd and sdi are guidances of their own

    cfg: Config
    trained_method: ClassVar[str] = "turboprop-vsd-guidance"  # the name of the guidance that does VSD in its place

    @classmethod
    def returned_losses(cls, cfg: Any = None) -> tuple[str, ...]:
        """X of each loss_X of a step with this config, the method's own first; without one, of any."""
        if cfg is None:
            return tuple(name for method in METHODS for name in losses_named(method, True))
        checked = parse_structured(cls.Config, cfg)
        cls.check_method(checked.method)
        return losses_named(checked.method, checked.use_img_loss)

    def configure(self, teacher: Teacher | None = None) -> None:
        self.check_method(self.cfg.method)
        self.loss_name, self.method = self.cfg.method, METHODS[self.cfg.method]
        super().configure(teacher)

    def method_for(self, conditions: Conditions) -> Method:
        return self.method

    @classmethod
    def check_method(cls, method: str) -> None:
        """Raises UserError, naming the key, for a method that is none of this guidance's."""
        if method == "vsd":
            raise UserError(f"method: vsd trains a teacher of its own; set guidance_type={cls.trained_method}")
        check_choice("method", method, METHODS)


# ----------------------------------------------------------------------------------- names


def register_names(
    guidance: type[BaseObject] | type[BaseModule],
    names: dict[str, dict[str, Any]],
    **attributes: Any,
) -> None:
    """Registers a guidance under each name, with the defaults of config keys that stand beside it.

    Errors about an unknown key say the name. `attributes` are those of the class.
    """
    for name, defaults in names.items():
        known = guidance.Config.__dataclass_fields__
        fields = [(key, known[key].type, field(default=value)) for key, value in defaults.items()]
        config = make_dataclass("Config", fields, bases=(guidance.Config,))
        config.__module__, config.__qualname__ = guidance.__module__, f"{name}.Config"
        members = {"__doc__": guidance.__doc__, "__module__": guidance.__module__, "Config": config, **attributes}
        threestudio.register(name)(type(guidance.__name__, (guidance,), members))


register_names(
    DistillationGuidance,
    {
        "turboprop-guidance": {},
        "turboprop-asd-guidance": {},  # Asynchronous Score Distillation (ScaleDreamer)
        # Score Distillation Sampling (DreamFusion)
        "turboprop-sds-guidance": {"method": "sds", "guidance_scale": 100.0},
        "turboprop-csd-guidance": {"method": "csd"},  # Classifier Score Distillation
        # by the distance to the clean latents (TriplaneTurbo's, with DMD's normaliser)
        "turboprop-normalized-csd-guidance": {"method": "normalized_csd"},
        # ScaleDreamer's name and defaults; its configs all say plus_random: true, and guidance_perp_neg: -0.5 for
        # Stable Diffusion
        "stable-diffusion-asynchronous-score-distillation-guidance": {"plus_random": False, "guidance_perp_neg": 0.0},
    },
)
