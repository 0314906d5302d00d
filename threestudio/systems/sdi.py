"""Score distillation via inversion (Lukoianov et al. 2024): DreamFusion whose noise is found, not drawn."""

from dataclasses import dataclass

import threestudio
from threestudio.systems.loss_weights import LossWeights
from threestudio.systems.losses import VOLUME_WEIGHTS, convexity_loss, volume_losses
from threestudio.systems.score_distillation import ScoreDistillationSystem
from threestudio.utils.errors import UserError


@threestudio.register("sdi-system")
class ScoreDistillationViaInversion(ScoreDistillationSystem):
    @dataclass
    class Config(ScoreDistillationSystem.Config):
        convexity_res: int = 8  # side of the coarse normals that the convexity loss looks at, pixels

    cfg: Config

    def own_weights(self) -> LossWeights:
        return VOLUME_WEIGHTS.with_(optional=("lambda_convex",))

    def configure(self) -> None:
        if self.cfg.convexity_res < 2:
            raise UserError(f"system.convexity_res: expected >= 2, got {self.cfg.convexity_res}")
        super().configure()

    def training_step(self, batch: dict, batch_idx: int) -> dict:
        out = self(batch)
        losses = {**self.guide(out["comp_rgb"], batch), **volume_losses(out, self.weight)}
        if self.weight("convex") > 0:
            if "comp_normal" not in out:
                raise UserError("loss.lambda_convex needs renderer.return_comp_normal=true")
            losses["loss_convex"] = convexity_loss(out["comp_normal"], self.cfg.convexity_res)
        return self.weighted_sum(losses)
