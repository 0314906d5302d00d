"""ScaleDreamer's two systems: of generators, and of one prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import threestudio
from threestudio.systems.dreamfusion import DreamFusion
from threestudio.systems.loss_weights import LossWeights
from threestudio.utils.errors import UserError

from ..amortized.system import MultiPromptGeneratorSystem
from ..multi_view.eikonal import WithEikonal
from .keys import only

NOT_OF_GENERATORS = ("lambda_orient", "lambda_z_variance")


@dataclass
class StageKeys:
    """What both systems' configs say beside threestudio's keys."""

    stage: str = "coarse"  # the only one
    visualize_samples: bool = False  # true is not available
    validation_via_video: bool = False  # not read: a validation leaves pictures


def check_stage(cfg: Any) -> None:
    only("system.stage", cfg.stage, "coarse")
    only("system.visualize_samples", cfg.visualize_samples, False)


@threestudio.register("multiprompt-radience-field-generator-system")
class ScaleDreamerSystem(MultiPromptGeneratorSystem):
    """Generators. The weights of orient and z_variance have to be 0, as in all of ScaleDreamer's configs."""

    @dataclass
    class Config(MultiPromptGeneratorSystem.Config, StageKeys):
        initialize_shape: bool = False  # not read: the geometry's first shape is a sphere
        train_guidance: bool = False  # not read: the guidance says whether it learns
        rgb_as_latents: bool = False  # true is not available

    cfg: Config

    def own_weights(self) -> LossWeights:
        return super().own_weights().with_(optional=NOT_OF_GENERATORS)

    def configure(self) -> None:
        check_stage(self.cfg)
        only("system.rgb_as_latents", self.cfg.rgb_as_latents, False)
        for key in NOT_OF_GENERATORS:
            if self.cfg.loss.get(key, 0) != 0:
                raise UserError(
                    f"system.loss.{key}: not available for generators, expected 0, got {self.cfg.loss[key]}"
                )
        super().configure()


@threestudio.register("scaledreamer-system")
class ScaleDreamerSinglePromptSystem(WithEikonal, DreamFusion):
    """One scene for one prompt."""

    @dataclass
    class Config(DreamFusion.Config, StageKeys):
        pass

    cfg: Config

    def configure(self) -> None:
        check_stage(self.cfg)
        super().configure()
