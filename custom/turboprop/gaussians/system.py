"""`gaussian-splatting-system`: one scene of Gaussians for one prompt, taught by any guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict

import threestudio
import torch
from threestudio.systems.loss_weights import LossWeights
from threestudio.systems.score_distillation import ScoreDistillationSystem
from torch import Tensor

from .losses import GAUSSIAN_LOSSES, PICTURE_LOSSES
from .training import GaussianTraining


class GaussianSplattingSystem(GaussianTraining, ScoreDistillationSystem):
    """Losses, each times its lambda_X: the guidance's loss_X; position, opacity, scales, tv_loss, depth_tv_loss,
    sparsity, opaque."""

    @dataclass
    class Config(ScoreDistillationSystem.Config):
        exporter_type: str = "gaussian-mesh-exporter"
        visualize_samples: bool = False  # also write what the guidance makes of the renders, at each validation

    cfg: Config

    def own_weights(self) -> LossWeights:
        return LossWeights(optional=tuple(f"lambda_{name}" for name in (*GAUSSIAN_LOSSES, *PICTURE_LOSSES)))

    def forward(self, batch: Dict[str, Any]) -> Dict[str, Any]:
        return self.renderer.batch_forward(batch)

    def training_step(self, batch: Dict[str, Any], batch_idx: int) -> Dict[str, Tensor]:
        out = self(batch)
        return self.weighted_sum({**self.guide(out["comp_rgb"], batch), **self._regularizers(out)})

    def _regularizers(self, out: Dict[str, Any]) -> Dict[str, Tensor]:
        gaussians = self.geometry.gaussians()
        losses = {f"loss_{name}": loss(gaussians) for name, loss in GAUSSIAN_LOSSES.items() if self.weight(name) != 0}
        losses.update({f"loss_{name}": loss(out) for name, loss in PICTURE_LOSSES.items() if self.weight(name) != 0})
        return losses

    def validation_step(self, batch: Dict[str, Any], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        if self.cfg.visualize_samples and int(batch["index"][0]) == 0:
            with torch.no_grad():
                rgb = self(batch)["comp_rgb"]
                seen = self.ask_guidance(rgb, batch, guidance_eval=True)
            self.guidance_evaluation_save(rgb, seen["eval"])


threestudio.register("turboprop-gaussian-splatting-system")(GaussianSplattingSystem)
# threestudio-3dgs brings its own.
if "gaussian-splatting-system" not in threestudio.__modules__:
    threestudio.register("gaussian-splatting-system")(GaussianSplattingSystem)
