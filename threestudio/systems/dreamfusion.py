"""DreamFusion (Poole et al. 2022): one scene for one prompt, taught by score distillation."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

import threestudio
from threestudio.systems.guide_shape import GuideShapeConfig, WithGuideShape, guide_shape_losses
from threestudio.systems.losses import volume_losses
from threestudio.systems.score_distillation import ScoreDistillationSystem


@threestudio.register("dreamfusion-system")
class DreamFusion(WithGuideShape, ScoreDistillationSystem):
    @dataclass
    class Config(GuideShapeConfig, ScoreDistillationSystem.Config):
        pass

    cfg: Config

    def training_step(self, batch: dict, batch_idx: int) -> dict:
        out = self(batch)
        return self.weighted_sum({**self.guide(out["comp_rgb"], batch), **self.scene_losses(out)})

    def scene_losses(self, out: dict[str, Any]) -> dict[str, Tensor]:
        """The regularizers of a render, by `loss_X`."""
        return {**volume_losses(out, self.weight), **guide_shape_losses(self.guide_shape, out, self.weight)}
