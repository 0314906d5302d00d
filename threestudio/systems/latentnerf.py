"""Latent-NeRF (Metzer et al. 2022): a field of latents, and a refinement of it in colours."""

from dataclasses import dataclass
from typing import Optional

import threestudio
from threestudio.systems.latent_scene import LatentSceneSystem
from threestudio.systems.loss_weights import LossWeights
from threestudio.systems.losses import VOLUME_WEIGHTS, volume_losses
from threestudio.utils.errors import UserError


@threestudio.register("latentnerf-system")
class LatentNeRF(LatentSceneSystem):
    @dataclass
    class Config(LatentSceneSystem.Config):
        guide_shape: Optional[str] = None  # Sketch-Shape's guide mesh; only null is supported
        refinement: bool = False  # the second stage: the material turns latents to colours before rendering

    cfg: Config

    def own_weights(self) -> LossWeights:
        # lambda_shape, which upstream's configs have, weighs guide_shape
        return VOLUME_WEIGHTS.with_(optional=("lambda_shape",))

    def configure(self) -> None:
        if self.cfg.guide_shape is not None:
            raise UserError("system.guide_shape: guide meshes are not supported; expected null")
        super().configure()

    def training_step(self, batch: dict, batch_idx: int) -> dict:
        out = self(batch)
        losses = self.guide(out["comp_rgb"], batch, as_latents=not self.cfg.refinement)
        return self.weighted_sum({**losses, **volume_losses(out, self.weight)})

    def decode(self, out: dict) -> dict:
        if self.cfg.refinement:
            return {**out, "decoded_rgb": out["comp_rgb"]}
        return super().decode(out)
