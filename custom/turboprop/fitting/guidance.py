"""`turboprop-pictures-guidance`: pictures in place of a teacher, so that any system fits any representation to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import threestudio
from threestudio.utils.base import BaseObject
from threestudio.utils.errors import UserError
from torch import Tensor


def robust_loss(difference: Tensor, delta: float) -> Tensor:
    """Pseudo-Huber loss: quadratic below `delta`, linear above (Charbonnier et al. 1994). Any shape -> scalar."""
    return (delta * delta * ((1.0 + (difference / delta) ** 2).sqrt() - 1.0)).mean()


@threestudio.register("turboprop-pictures-guidance")
class PicturesGuidance(BaseObject):
    """Answers `loss_rgb`: how far renders are from the pictures in the batch (see turboprop-posed-views-datamodule)."""

    @dataclass
    class Config(BaseObject.Config):
        delta: float = 0.1  # difference of sRGB in [0, 1] from which the loss is linear

    cfg: Config

    @classmethod
    def returned_losses(cls, cfg: Any = None) -> tuple[str, ...]:
        """X of each loss_X that every step returns."""
        return ("rgb",)

    def configure(self) -> None:
        if not self.cfg.delta > 0:
            raise UserError(f"system.guidance.delta: expected > 0, got {self.cfg.delta}")

    def __call__(
        self,
        rgb: Tensor,  # [B, H, W, 3]
        prompt_utils: Any,
        target_rgb: Tensor | None = None,  # [B, H, W, 3], on the background that the renders have
        guidance_eval: bool = False,
        **kwargs: Any,  # the rest of the host's batch
    ) -> dict[str, Tensor]:
        """Raises ValueError where the batch has no pictures of the renders' size."""
        if target_rgb is None:
            needed = "set data_type=turboprop-posed-views-datamodule"
            raise UserError(f"turboprop-pictures-guidance needs target_rgb in the batch: {needed}")
        if target_rgb.shape != rgb.shape:
            raise ValueError(f"renders {list(rgb.shape)} and pictures {list(target_rgb.shape)} differ in shape")
        squared = ((rgb - target_rgb) ** 2).mean().detach()
        loss = robust_loss(rgb - target_rgb, self.cfg.delta) / self.cfg.delta
        return {"loss_rgb": loss, "psnr": -10.0 * squared.clamp_min(1e-10).log10()}
