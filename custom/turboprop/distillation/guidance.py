"""The registered guidances of methods that need a teacher alone, as threestudio calls a guidance.

One class does the work; the names below differ in defaults only, so a method is swapped by one line of a config.
"""

from dataclasses import dataclass
from typing import Any, Optional

from torch import Tensor

import threestudio
from threestudio.utils.config import parse_structured
from threestudio.utils.errors import UserError

from ..teachers.contract import Cameras, Teacher
from .methods import METHODS
from .prior import DistillationPrior, check_choice, with_image_loss


@threestudio.register("turboprop-guidance")
class DistillationGuidance(DistillationPrior):
    """A distillation method, a teacher, and the schedule between them."""

    @dataclass
    class Config(DistillationPrior.Config):
        method: str = "asd"  # asd, sds, csd, normalized_csd or sjc; vsd and sdi are guidances of their own

    cfg: Config
    # X of each loss_X that this may return: the host checks the names of loss weights by it
    loss_names = tuple(f"{method}{kind}" for method in METHODS for kind in ("", "_img"))

    @classmethod
    def losses_of_each_step(cls, cfg: Any) -> tuple[str, ...]:
        """X of each loss_X that every step returns with this config, the method's own first."""
        checked = parse_structured(cls.Config, cfg)
        _check_method(checked.method)
        return with_image_loss(checked.method, checked)

    def configure(self, teacher: Optional[Teacher] = None) -> None:
        _check_method(self.cfg.method)
        self.method = METHODS[self.cfg.method]
        self.loss_name = self.cfg.method
        super().configure(teacher)

    def __call__(
        self,
        rgb: Tensor,  # [B, H, W, 3] in [0, 1], or latents [B, h, w, C] with `rgb_as_latents`
        prompt_utils: Any,
        elevation: Tensor,  # [B], degrees
        azimuth: Tensor,  # [B], degrees
        camera_distances: Tensor,  # [B]
        rgb_as_latents: bool = False,
        guidance_eval: bool = False,  # also return pictures of what the teacher sees
        c2w: Optional[Tensor] = None,  # [B, 4, 4], for teachers that want to know
        fovy: Optional[Tensor] = None,  # [B], radians
        **kwargs: Any,  # the rest of the batch
    ) -> dict[str, Any]:
        """One step's losses and figures, as `DistillationPrior.distill` names them; and eval with guidance_eval."""
        renders = self.renders(rgb, rgb_as_latents)
        conditions = self.conditions(prompt_utils, Cameras(elevation, azimuth, camera_distances, c2w, fovy))
        distilled = self.distill(self.loss_name, self.method, renders, conditions)
        output = distilled.output
        if guidance_eval:
            output["eval"] = self.pictures(distilled, conditions, elevation, azimuth, camera_distances)
        return output


def _check_method(method: str) -> None:
    if method == "vsd":
        raise UserError("method: vsd trains a teacher of its own; set guidance_type=turboprop-vsd-guidance")
    check_choice("method", method, METHODS)


@threestudio.register("turboprop-asd-guidance")
class AsynchronousScoreDistillationGuidance(DistillationGuidance):
    """Asynchronous Score Distillation (ScaleDreamer)."""


@threestudio.register("turboprop-sds-guidance")
class ScoreDistillationSamplingGuidance(DistillationGuidance):
    """Score Distillation Sampling (DreamFusion)."""

    @dataclass
    class Config(DistillationGuidance.Config):
        method: str = "sds"
        guidance_scale: float = 100.0


@threestudio.register("turboprop-csd-guidance")
class ClassifierScoreDistillationGuidance(DistillationGuidance):
    """Classifier Score Distillation."""

    @dataclass
    class Config(DistillationGuidance.Config):
        method: str = "csd"


@threestudio.register("turboprop-normalized-csd-guidance")
class NormalizedClassifierScoreDistillationGuidance(DistillationGuidance):
    """Classifier Score Distillation by the distance to the clean latents (TriplaneTurbo's, with DMD's normaliser)."""

    @dataclass
    class Config(DistillationGuidance.Config):
        method: str = "normalized_csd"  # weighting_strategy has no part in it, but for use_img_loss


@threestudio.register("stable-diffusion-asynchronous-score-distillation-guidance")
class StableDiffusionAsynchronousScoreDistillationGuidance(DistillationGuidance):
    """ASD under the name, and with the defaults, that ScaleDreamer's configs use."""

    @dataclass
    class Config(DistillationGuidance.Config):
        plus_random: bool = False  # its configs all say true
        guidance_perp_neg: float = 0.0  # perp-neg is off; its configs of Stable Diffusion say -0.5
