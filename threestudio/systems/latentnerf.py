"""Latent-NeRF (Metzer et al. 2022): a field of latents, and a refinement of it in colours."""

from dataclasses import dataclass

import threestudio
from threestudio.systems.guide_shape import GuideShapeConfig, WithGuideShape, guide_shape_losses
from threestudio.systems.latent_scene import LatentSceneSystem
from threestudio.systems.losses import volume_losses


@threestudio.register("latentnerf-system")
class LatentNeRF(WithGuideShape, LatentSceneSystem):
    @dataclass
    class Config(GuideShapeConfig, LatentSceneSystem.Config):
        refinement: bool = False  # the second stage: the material turns latents to colours before rendering

    cfg: Config

    def training_step(self, batch: dict, batch_idx: int) -> dict:
        out = self(batch)
        losses = self.guide(out["comp_rgb"], batch, as_latents=not self.cfg.refinement)
        guided = guide_shape_losses(self.guide_shape, out, self.weight)
        return self.weighted_sum({**losses, **volume_losses(out, self.weight), **guided})

    def decode(self, out: dict) -> dict:
        if self.cfg.refinement:
            return {**out, "decoded_rgb": out["comp_rgb"]}
        return super().decode(out)
