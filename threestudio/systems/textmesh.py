"""TextMesh (Tsalicoglou et al. 2023): a signed distance field, rendered as a volume, whose surface is the result."""

import threestudio
from threestudio.systems.loss_weights import LossWeights
from threestudio.systems.losses import VOLUME_WEIGHTS, eikonal_loss, volume_losses
from threestudio.systems.score_distillation import ScoreDistillationSystem


@threestudio.register("textmesh-system")
class TextMesh(ScoreDistillationSystem):
    shown_figures = ("train/inv_std",)

    def own_weights(self) -> LossWeights:
        return VOLUME_WEIGHTS.with_(required=("lambda_eikonal",))

    def training_step(self, batch: dict, batch_idx: int) -> dict:
        out = self(batch)
        losses = {**self.guide(out["comp_rgb"], batch), **volume_losses(out, self.weight)}
        losses["loss_eikonal"] = eikonal_loss(out["sdf_grad"])
        self.log("train/inv_std", out["inv_std"].detach().mean())
        return self.weighted_sum(losses)
