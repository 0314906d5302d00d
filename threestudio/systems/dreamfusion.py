"""DreamFusion (Poole et al. 2022): one scene for one prompt, taught by score distillation."""

import threestudio
from threestudio.systems.loss_weights import LossWeights
from threestudio.systems.losses import VOLUME_WEIGHTS, volume_losses
from threestudio.systems.score_distillation import ScoreDistillationSystem


@threestudio.register("dreamfusion-system")
class DreamFusion(ScoreDistillationSystem):
    def own_weights(self) -> LossWeights:
        return VOLUME_WEIGHTS

    def training_step(self, batch: dict, batch_idx: int) -> dict:
        out = self(batch)
        return self.weighted_sum({**self.guide(out["comp_rgb"], batch), **volume_losses(out, self.weight)})
