"""Magic3D (Lin et al. 2022): a density field at low resolution, then its surface as a mesh at high resolution."""

from dataclasses import dataclass

import threestudio
from threestudio.systems.loss_weights import LossWeights
from threestudio.systems.losses import (
    SURFACE_WEIGHTS,
    VOLUME_WEIGHTS,
    surface_losses,
    volume_losses,
)
from threestudio.systems.score_distillation import ScoreDistillationSystem


@threestudio.register("magic3d-system")
class Magic3D(ScoreDistillationSystem):
    @dataclass
    class Config(ScoreDistillationSystem.Config):
        refinement: bool = False  # the second stage: a mesh, made from `geometry_convert_from`

    cfg: Config

    def own_weights(self) -> LossWeights:
        own, other = VOLUME_WEIGHTS, SURFACE_WEIGHTS
        if self.cfg.refinement:
            own, other = other, own
        return own.with_(optional=other.keys)

    def training_step(self, batch: dict, batch_idx: int) -> dict:
        out = self(batch)
        losses = self.guide(out["comp_rgb"], batch)
        if self.cfg.refinement:
            losses.update(surface_losses(out["mesh"], self.weight, out["opacity"]))
        else:
            losses.update(volume_losses(out, self.weight))
        return self.weighted_sum(losses)
