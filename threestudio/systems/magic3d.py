"""Magic3D (Lin et al. 2022): a density field at low resolution, then its surface as a mesh at high resolution."""

from dataclasses import dataclass

import threestudio
from threestudio.systems.loss_weights import LossWeights
from threestudio.systems.losses import scene_losses, scene_weights
from threestudio.systems.score_distillation import ScoreDistillationSystem


@threestudio.register("magic3d-system")
class Magic3D(ScoreDistillationSystem):
    @dataclass
    class Config(ScoreDistillationSystem.Config):
        refinement: bool = False  # the second stage: a mesh, made from `geometry_convert_from`

    cfg: Config

    def own_weights(self) -> LossWeights:
        return scene_weights(self.cfg.refinement)

    def training_step(self, batch: dict, batch_idx: int) -> dict:
        out = self(batch)
        losses = self.guide(out["comp_rgb"], batch)
        losses.update(scene_losses(out, self.cfg.refinement, self.weight))
        return self.weighted_sum(losses)
