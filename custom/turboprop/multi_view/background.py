"""`mvdream-neural-environment-map-background`: a learned environment before which all views of a step may agree."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import threestudio

HostBackground = threestudio.find("neural-environment-map-background")


@threestudio.register("mvdream-neural-environment-map-background")
class SharedEnvironmentBackground(HostBackground):
    """The host's learned environment, with threestudio-mvdream's key."""

    @dataclass
    class Config(HostBackground.Config):
        share_aug_bg: bool = False  # with random_aug: one random colour for all views of a step, not one for each

    cfg: Config

    def augmented(self, color: Tensor, shared: bool = False) -> Tensor:  # [B, H, W, C]
        return super().augmented(color, shared=self.cfg.share_aug_bg)
