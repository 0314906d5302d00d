"""Guidances as upstream threestudio has them, with its names, keys, defaults and numbers.

Upstream's guidance is eps_c + s (eps_c - eps_u), so its s is 1 less than in the usual form; with perp-neg it is the
usual one. (VSD has the usual form there; see variational.py.)
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Optional

import torch
from torch import Tensor

import threestudio
from threestudio.utils.config import parse_structured
from threestudio.utils.errors import UserError

from ..teachers.contract import Cameras, Teacher
from .guidance import DistillationGuidance
from .inversion import sdi_gradient
from .methods import METHODS, Conditions
from .prior import DistillationPrior, with_image_loss
from .timesteps import sample_timesteps


def usual_scale(scale: float, conditions: Conditions) -> float:
    """Upstream's guidance scale in the form eps_u + s (eps_c - eps_u)."""
    return scale + 1.0 if conditions.negatives is None else scale


class StableDiffusionGuidance(DistillationGuidance):
    """Score Distillation Sampling, or Score Jacobian Chaining with `use_sjc`."""

    @dataclass
    class Config(DistillationGuidance.Config):
        method: str = "sds"
        pretrained_model_name_or_path: str = "runwayml/stable-diffusion-v1-5"  # a local folder or a hub id
        guidance_scale: float = 100.0  # see usual_scale
        guidance_perp_neg: float = -1.0
        use_sjc: bool = False  # Score Jacobian Chaining in place of SDS; unweighted
        var_red: bool = True  # its variance reduction
        token_merging: bool = False  # only false is supported
        token_merging_params: dict[str, Any] = field(default_factory=dict)

    cfg: Config

    def configure(self, teacher: Optional[Teacher] = None) -> None:
        _check_token_merging(self.cfg)
        super().configure(teacher)
        if self.cfg.use_sjc:
            # sjc_gradient says why SJC with variance reduction is SDS with w = 1
            self.method = METHODS["sds" if self.cfg.var_red else "sjc"]
            self.weighting_strategy = "uniform"

    def scale_of(self, conditions: Conditions) -> float:
        return usual_scale(self.guidance_scale, conditions)


class DeepFloydGuidance(DistillationGuidance):
    """Score Distillation Sampling in the pixel space of DeepFloyd IF's first stage."""

    @dataclass
    class Config(DistillationGuidance.Config):
        method: str = "sds"
        pretrained_model_name_or_path: str = "DeepFloyd/IF-I-XL-v1.0"  # a local folder or a hub id
        guidance_scale: float = 20.0  # see usual_scale
        guidance_perp_neg: float = -1.0
        enable_channels_last_format: bool = True

    cfg: Config

    def scale_of(self, conditions: Conditions) -> float:
        return usual_scale(self.guidance_scale, conditions)

    def renders(self, rgb: Tensor, rgb_as_latents: bool) -> Any:
        if rgb_as_latents:
            raise UserError("rgb_as_latents: deep-floyd-guidance has no latents; expected rendered images")
        return super().renders(rgb, rgb_as_latents)


class StableDiffusionSDIGuidance(DistillationPrior):
    """Score Distillation via Inversion."""

    @dataclass
    class Config(DistillationPrior.Config):
        guidance_scale: float = 100.0  # see usual_scale
        guidance_perp_neg: float = -1.0
        trainer_max_steps: int = 10000  # the length of the run, for t_anneal and sqrt_anneal
        enable_sdi: bool = True  # false: random noise, as in SDS
        inversion_guidance_scale: float = -7.5  # see usual_scale
        inversion_n_steps: int = 10  # of an inversion up to T; one up to t takes its share
        inversion_eta: float = 0.3  # fresh noise of each step of the inversion
        t_anneal: bool = True  # one timestep, from max to min with the run's progress
        var_red: bool = True  # accepted; has no part in it
        n_ddim_steps: int = 50  # accepted; previews take 50 steps
        token_merging: bool = False  # only false is supported
        token_merging_params: dict[str, Any] = field(default_factory=dict)

    cfg: Config
    loss_names = ("sdi", "sdi_img")

    @classmethod
    def losses_of_each_step(cls, cfg: Any) -> tuple[str, ...]:
        """X of each loss_X that every step returns with this config, the method's own first."""
        return with_image_loss("sdi", parse_structured(cls.Config, cfg))

    def configure(self, teacher: Optional[Teacher] = None) -> None:
        _check_token_merging(self.cfg)
        if self.cfg.inversion_n_steps < 1:
            raise UserError(
                f"inversion_n_steps: expected a number of at least 1, got {self.cfg.inversion_n_steps}"
            )
        if self.cfg.inversion_eta < 0:
            raise UserError(
                f"inversion_eta: expected a number of at least 0, got {self.cfg.inversion_eta:g}"
            )
        super().configure(teacher)

    @property
    def anneals_one_timestep(self) -> bool:
        return self.cfg.t_anneal or super().anneals_one_timestep

    def annealed(self, low: float, high: float, progress: float) -> tuple[float, float]:
        if not self.cfg.t_anneal:
            return super().annealed(low, high, progress)
        percent = (high - low) * (1.0 - min(max(progress, 0.0), 1.0)) + low
        return percent, percent

    def scale_of(self, conditions: Conditions) -> float:
        return usual_scale(self.guidance_scale, conditions)

    def draw_timesteps(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """t, and where the noise is found: up to a step of the inversion later."""
        total, device = self.teacher.num_timesteps, self.teacher.device
        shared = self.cfg.shared_timesteps
        timesteps = sample_timesteps(self.min_step, self.max_step, batch_size, device, shared)
        stride = max(total // self.cfg.inversion_n_steps, 1)
        later = timesteps + torch.randint(0, stride, (batch_size,), device=device)
        return timesteps, later.clamp(max=total - 1)

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
        """One step's losses and figures, as `DistillationPrior.distill` names them; and eval with guidance_eval.

        loss_sdi is the mean over all entries of the batch's latents, and divided by B again, as upstream has it.
        """
        cfg = self.cfg
        cameras = (elevation, azimuth, camera_distances)
        renders = self.renders(rgb, rgb_as_latents)
        conditions = self.conditions(prompt_utils, Cameras(*cameras, c2w, fovy))
        method = partial(
            sdi_gradient,
            invert=cfg.enable_sdi,
            inversion_guidance_scale=usual_scale(cfg.inversion_guidance_scale, conditions),
            inversion_n_steps=cfg.inversion_n_steps,
            inversion_eta=cfg.inversion_eta,
        )
        distilled = self.distill("sdi", method, renders, conditions)
        output = {**distilled.output, "loss_sdi": distilled.output["loss_sdi"] / renders.latents.numel()}
        if guidance_eval:
            output["eval"] = self.pictures(distilled, conditions, *cameras)
        return output


def _check_token_merging(cfg: Any) -> None:
    if cfg.token_merging:
        raise UserError("token_merging: merging tokens is not supported; expected false, got true")


# An upstream checkout brings its own.
for _name, _guidance in {
    "stable-diffusion-guidance": StableDiffusionGuidance,
    "deep-floyd-guidance": DeepFloydGuidance,
    "stable-diffusion-sdi-guidance": StableDiffusionSDIGuidance,
}.items():
    if _name not in threestudio.__modules__:
        threestudio.register(_name)(_guidance)
