"""Latent-NeRF (Metzer et al. 2022): a field of latents, and a refinement of it in colours."""

from dataclasses import dataclass

import threestudio
from threestudio.systems.guide_shape import GuideShapeConfig, configured_guide_shape, guide_shape_losses
from threestudio.systems.latent_scene import LatentSceneSystem
from threestudio.systems.loss_weights import LossWeights
from threestudio.systems.losses import VOLUME_WEIGHTS, volume_losses


@threestudio.register("latentnerf-system")
class LatentNeRF(LatentSceneSystem):
    @dataclass
    class Config(GuideShapeConfig, LatentSceneSystem.Config):
        refinement: bool = False  # the second stage: the material turns latents to colours before rendering

    cfg: Config

    def own_weights(self) -> LossWeights:
        return VOLUME_WEIGHTS.with_(optional=("lambda_shape",))

    def configure(self) -> None:
        self.guide_shape = configured_guide_shape(self.cfg)
        super().configure()

    def open_teacher(self) -> None:
        if self.guide_shape is not None:
            self.guide_shape.read()  # what is wrong with its file is found before the teacher is opened
        super().open_teacher()

    def training_step(self, batch: dict, batch_idx: int) -> dict:
        out = self(batch)
        losses = self.guide(out["comp_rgb"], batch, as_latents=not self.cfg.refinement)
        guided = guide_shape_losses(self.guide_shape, out, self.weight)
        return self.weighted_sum({**losses, **volume_losses(out, self.weight), **guided})

    def decode(self, out: dict) -> dict:
        if self.cfg.refinement:
            return {**out, "decoded_rgb": out["comp_rgb"]}
        return super().decode(out)
