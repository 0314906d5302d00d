"""Guidances as upstream threestudio has them, with its names, keys, defaults and numbers.

Upstream's guidance is eps_c + s (eps_c - eps_u), so its s is 1 less than in the usual form; with perp-neg it is the
usual one. (VSD has the usual form there; see variational.py.)
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from threestudio.utils.config import parse_structured
from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import check_at_least

from ..teachers.contract import Teacher
from .guidance import DistillationGuidance, TeacherGuidance, losses_named, register_names
from .inversion import sdi_gradient
from .methods import METHODS, Conditions, Method
from .schedule import Schedule
from .timesteps import linearly_annealed_percent


@dataclass
class TokenMergingConfig:
    token_merging: bool = False  # only false is supported
    token_merging_params: dict[str, Any] = field(default_factory=dict)


def check_token_merging(cfg: TokenMergingConfig) -> None:
    """Raises UserError where tokens are to be merged."""
    if cfg.token_merging:
        raise UserError("token_merging: merging tokens is not supported; expected false, got true")


class StableDiffusionGuidance(DistillationGuidance):
    """Score Distillation Sampling, or Score Jacobian Chaining with `use_sjc`."""

    @dataclass
    class Config(TokenMergingConfig, DistillationGuidance.Config):
        use_sjc: bool = False  # Score Jacobian Chaining in place of SDS; unweighted; only with method sds
        var_red: bool = True  # its variance reduction

    cfg: Config

    def configure(self, teacher: Teacher | None = None) -> None:
        check_token_merging(self.cfg)
        if self.cfg.use_sjc and self.cfg.method != "sds":
            raise UserError(f"use_sjc: takes the place of method sds; expected false with {self.cfg.method}, got true")
        super().configure(teacher)
        if self.cfg.use_sjc:
            # sjc_gradient says why SJC with variance reduction is SDS with w = 1
            self.method = METHODS["sds" if self.cfg.var_red else "sjc"]
            self.weighting = "uniform"


class StableDiffusionSDIGuidance(TeacherGuidance):
    """Score Distillation via Inversion."""

    @dataclass
    class Config(TokenMergingConfig, TeacherGuidance.Config):
        trainer_max_steps: int = 10000  # the length of the run, for t_anneal and sqrt_anneal
        enable_sdi: bool = True  # false: random noise, as in SDS
        inversion_guidance_scale: float = -7.5  # in the form of guidance_scale
        inversion_n_steps: int = 10  # of an inversion up to T; one up to t takes its share
        inversion_eta: float = 0.3  # fresh noise of each step of the inversion
        t_anneal: bool = True  # one timestep, from max to min with the run's progress
        var_red: bool = True  # accepted; has no part in it
        n_ddim_steps: int = 50  # accepted; previews take 50 steps

    cfg: Config
    loss_name = "sdi"

    @classmethod
    def returned_losses(cls, cfg: Any = None) -> tuple[str, ...]:
        """X of each loss_X of a step with this config, the method's own first; without one, of any."""
        return losses_named("sdi", cfg is None or parse_structured(cls.Config, cfg).use_img_loss)

    def configure(self, teacher: Teacher | None = None) -> None:
        cfg = self.cfg
        check_token_merging(cfg)
        for key, least in (("inversion_n_steps", 1), ("inversion_eta", 0)):
            check_at_least(key, getattr(cfg, key), least)
        super().configure(teacher)

    def _build_schedule(self) -> Schedule:
        return Schedule(
            self.cfg,
            self.teacher.num_timesteps,
            self.teacher.device,
            course=linearly_annealed_percent if self.cfg.t_anneal else None,
            inversion_steps=self.cfg.inversion_n_steps,
        )

    def method_for(self, conditions: Conditions) -> Method:
        cfg = self.cfg
        return partial(
            sdi_gradient,
            invert=cfg.enable_sdi,
            inversion_guidance_scale=self.usual_scale(cfg.inversion_guidance_scale, conditions),
            inversion_n_steps=cfg.inversion_n_steps,
            inversion_eta=cfg.inversion_eta,
        )

    def __call__(self, rgb: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See `TeacherGuidance`; loss_sdi is the mean over all latents' entries, divided by B again, as upstream's."""
        output = super().__call__(rgb, *args, **kwargs)
        entries = rgb.shape[0] * self.teacher.latent_channels * self.teacher.latent_size**2
        return {**output, "loss_sdi": output["loss_sdi"] / entries}


register_names(
    StableDiffusionGuidance,
    {
        "stable-diffusion-guidance": {
            "method": "sds",
            "pretrained_model_name_or_path": "runwayml/stable-diffusion-v1-5",
            "guidance_scale": 100.0,
            "guidance_perp_neg": -1.0,
        }
    },
    upstream_scale=True,
)
register_names(
    DistillationGuidance,
    {
        "deep-floyd-guidance": {  # in the pixel space of the first stage
            "method": "sds",
            "pretrained_model_name_or_path": "DeepFloyd/IF-I-XL-v1.0",
            "guidance_scale": 20.0,
            "guidance_perp_neg": -1.0,
            "enable_channels_last_format": True,
        }
    },
    upstream_scale=True,
    refuses_latents="deep-floyd-guidance",
)
register_names(
    StableDiffusionSDIGuidance,
    {"stable-diffusion-sdi-guidance": {"guidance_scale": 100.0, "guidance_perp_neg": -1.0}},
    upstream_scale=True,
)
