"""Score Jacobian Chaining (Wang et al. 2022): a grid of latents, taught by a 2D model's score."""

from dataclasses import dataclass
from typing import Any

import torch

import threestudio
from threestudio.systems.latent_scene import LatentSceneSystem
from threestudio.systems.loss_weights import LossWeights
from threestudio.systems.losses import center_depth_loss, emptiness_loss
from threestudio.systems.views import view_cells
from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import is_number, shown

BACKGROUND_DEPTH = 10.0  # world units, of rays that hit nothing


@threestudio.register("sjc-system")
class ScoreJacobianChaining(LatentSceneSystem):
    @dataclass
    class Config(LatentSceneSystem.Config):
        subpixel_rendering: bool = True  # pictures are decoded from latents of twice the model's size

    cfg: Config

    def own_weights(self) -> LossWeights:
        # emptiness_scale: factor of the weights in the emptiness loss; center_ratio: share of an image's sides
        return LossWeights(required=("lambda_emptiness", "emptiness_scale", "lambda_depth", "center_ratio"))

    def configure(self) -> None:
        """Raises UserError for a middle that is no part of the image, or all of it: its mean depth would be nan."""
        ratio, scale = (self.cfg.loss.get(key) for key in ("center_ratio", "emptiness_scale"))
        if ratio is not None and not (is_number(ratio) and 0 < ratio < 1):
            raise UserError(f"system.loss.center_ratio: expected a number above 0 and below 1, got {shown(ratio)}")
        if scale is not None and not (is_number(scale) and scale >= 0):
            raise UserError(f"system.loss.emptiness_scale: expected a number from 0, got {shown(scale)}")
        super().configure()

    def training_step(self, batch: dict, batch_idx: int) -> dict:
        out = self(batch)
        losses = self.guide(out["comp_rgb"], batch, as_latents=True)
        losses["loss_emptiness"] = emptiness_loss(out["weights"], self.cfg.loss["emptiness_scale"])
        if self.weight("depth") > 0:
            depth = self._depth_with_background(out)[..., 0]
            losses["loss_depth"] = center_depth_loss(depth, self.cfg.loss["center_ratio"])
        return self.weighted_sum(losses)

    def _depth_with_background(self, out: dict) -> Any:
        return out["depth"] + BACKGROUND_DEPTH * (1.0 - out["opacity"])  # [B, H, W, 1]

    def decoded_latent_size(self) -> Any:
        return 2 * self.guidance.latent_size if self.cfg.subpixel_rendering else None

    def evaluation_views(self, batch: dict) -> list[dict]:
        out = self.decode(self(batch))
        depth = self._depth_with_background(out)[0, :, :, 0]
        shown = torch.log1p(depth) / torch.log1p(torch.tensor(BACKGROUND_DEPTH)).to(depth)
        cell = {
            "type": "grayscale",
            "img": shown,
            "kwargs": {"cmap": "spectral", "data_range": (0, 1)},
        }
        return [*view_cells(out, self.view_names), cell]
