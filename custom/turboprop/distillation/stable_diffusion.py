"""`stable-diffusion-guidance` as upstream threestudio has it, with its keys, its defaults and its numbers."""

from dataclasses import dataclass, field
from typing import Any, Optional

import threestudio

from ..teachers.contract import Teacher
from .guidance import DistillationGuidance
from .methods import METHODS, Conditions


class StableDiffusionGuidance(DistillationGuidance):
    """Score Distillation Sampling, or Score Jacobian Chaining with `use_sjc`."""

    @dataclass
    class Config(DistillationGuidance.Config):
        method: str = "sds"
        pretrained_model_name_or_path: str = "runwayml/stable-diffusion-v1-5"  # a local folder or a hub id
        guidance_scale: float = 100.0  # see scale_of
        guidance_perp_neg: float = -1.0
        use_sjc: bool = False  # Score Jacobian Chaining in place of SDS; unweighted
        var_red: bool = True  # its variance reduction
        token_merging: bool = False  # only false is supported
        token_merging_params: dict[str, Any] = field(default_factory=dict)

    cfg: Config

    def configure(self, teacher: Optional[Teacher] = None) -> None:
        if self.cfg.token_merging:
            raise ValueError("token_merging: merging tokens is not supported; expected false, got true")
        super().configure(teacher)
        if self.cfg.use_sjc:
            # sjc_gradient says why SJC with variance reduction is SDS with w = 1
            self.method = METHODS["sds" if self.cfg.var_red else "sjc"]
            self.weighting_strategy = "uniform"

    def scale_of(self, conditions: Conditions) -> float:
        """Upstream's guidance is eps_c + s (eps_c - eps_u), so s + 1 in the usual form; with perp-neg it is the usual s."""
        return self.guidance_scale + 1.0 if conditions.negatives is None else self.guidance_scale


# An upstream checkout brings its own.
if "stable-diffusion-guidance" not in threestudio.__modules__:
    threestudio.register("stable-diffusion-guidance")(StableDiffusionGuidance)
