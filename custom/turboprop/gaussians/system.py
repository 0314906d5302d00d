"""`turboprop-gaussian-splatting-system`: one scene of Gaussians for one prompt, taught by any guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

import threestudio
from threestudio.systems.loss_weights import LossWeights
from threestudio.systems.score_distillation import ScoreDistillationSystem

from .losses import (
    GAUSSIAN_LOSSES,
    PICTURE_LOSSES,
    UPSTREAM_GAUSSIAN_LOSSES,
    UPSTREAM_MULTI_VIEW_LOSSES,
    UPSTREAM_PICTURE_LOSSES,
    learned_normals_loss,
)
from .training import GaussianTraining, within_pictures


class GaussianSplattingSystem(GaussianTraining, ScoreDistillationSystem):
    """Losses, each times its lambda_X: the guidance's loss_X; position, opacity, scales, tv_loss, depth_tv_loss,
    sparsity, opaque."""

    @dataclass
    class Config(ScoreDistillationSystem.Config):
        exporter_type: str = "gaussian-mesh-exporter"
        visualize_samples: bool = False  # also write what the guidance makes of the renders, at each validation

    cfg: Config
    gaussian_losses: ClassVar = GAUSSIAN_LOSSES
    picture_losses: ClassVar = PICTURE_LOSSES

    def own_weights(self) -> LossWeights:
        return LossWeights(optional=tuple(f"lambda_{name}" for name in (*self.gaussian_losses, *self.picture_losses)))

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        return self.renderer.batch_forward(batch)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        out = self(batch)
        return self.weighted_sum({**self.guide(out["comp_rgb"], batch), **self._regularizers(out)})

    def _regularizers(self, out: dict[str, Any]) -> dict[str, Tensor]:
        gaussians = self.geometry.gaussians()
        losses = {name: loss(gaussians) for name, loss in self.gaussian_losses.items() if self.weight(name) != 0}
        losses.update({name: loss(out) for name, loss in self.picture_losses.items() if self.weight(name) != 0})
        return {f"loss_{name}": value for name, value in losses.items()}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        if self.cfg.visualize_samples and int(batch["index"][0]) == 0:
            with torch.no_grad():
                rgb = self(batch)["comp_rgb"]
                seen = self.ask_guidance(rgb, batch, guidance_eval=True)
            self.guidance_evaluation_save(rgb, seen["eval"])


class UpstreamGaussianSplattingSystem(GaussianSplattingSystem):
    """The system under threestudio-3dgs's name, where opacity and scales are sums and depth_tv_loss sees normals."""

    gaussian_losses = UPSTREAM_GAUSSIAN_LOSSES
    picture_losses = UPSTREAM_PICTURE_LOSSES

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        return within_pictures(super().forward(batch))


class UpstreamMultiViewSystem(UpstreamGaussianSplattingSystem):
    """threestudio-3dgs's system for MVDream: depth_tv_loss sees depth alone, and learned normals follow the depth's.

    That views come in sets is the data's and the guidance's affair.
    """

    picture_losses = UPSTREAM_MULTI_VIEW_LOSSES

    def _regularizers(self, out: dict[str, Any]) -> dict[str, Tensor]:
        losses = super()._regularizers(out)
        if "comp_pred_normal" in out:
            losses["loss_pred_normal"] = learned_normals_loss(out)
        return losses

    def _lambda(self, loss_name: str) -> Any:
        """Learned normals have no key there: their loss counts once."""
        return 1.0 if loss_name == "loss_pred_normal" else super()._lambda(loss_name)


threestudio.register("turboprop-gaussian-splatting-system")(GaussianSplattingSystem)
# threestudio-3dgs brings its own.
UPSTREAM_NAMES = {
    "gaussian-splatting-system": UpstreamGaussianSplattingSystem,
    "gaussian-splatting-mvdream-system": UpstreamMultiViewSystem,
}
for _name, _system in UPSTREAM_NAMES.items():
    if _name not in threestudio.__modules__:
        threestudio.register(_name)(_system)
