"""Fantasia3D (Chen et al. 2023): the shape of a mesh is taught by its normals, then its look by its colours."""

from dataclasses import dataclass

import torch
from torch import Tensor

import threestudio
from threestudio.systems.loss_weights import LossWeights
from threestudio.systems.losses import SURFACE_WEIGHTS, surface_losses
from threestudio.systems.score_distillation import ScoreDistillationSystem


@threestudio.register("fantasia3d-system")
class Fantasia3D(ScoreDistillationSystem):
    @dataclass
    class Config(ScoreDistillationSystem.Config):
        latent_steps: int = 1000  # first steps, whose normals and mask are the latents themselves
        texture: bool = False  # the second stage: colours of a shape that stands

    cfg: Config

    def own_weights(self) -> LossWeights:
        return LossWeights(optional=SURFACE_WEIGHTS.keys) if self.cfg.texture else SURFACE_WEIGHTS

    def forward(self, batch: dict) -> dict:
        return self.renderer(**batch, render_rgb=self.cfg.texture)

    def training_step(self, batch: dict, batch_idx: int) -> dict:
        out = self(batch)
        if self.cfg.texture:
            return self.weighted_sum(self.guide(out["comp_rgb"], batch))
        return self.weighted_sum({**self._guide_shape(out, batch), **surface_losses(out["mesh"], self.weight)})

    def _guide_shape(self, out: dict, batch: dict) -> dict[str, Tensor]:
        """Normals and mask [B, H, W, 4] at the latents' size at first (section 3.1), then normals as a picture."""
        if self.true_global_step >= self.cfg.latent_steps:
            return self.guide(out["comp_normal"], batch)
        latents = torch.cat([out["comp_normal"] * 2.0 - 1.0, out["opacity"]], dim=-1)
        return self.guide(latents, batch, as_latents=True)
