"""The background that threestudio-3dgs's configs name: the host's learned environment, at times black or white."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import threestudio
from threestudio.utils.devices import sent

HostBackground = threestudio.find("neural-environment-map-background")


class GaussianEnvironmentBackground(HostBackground):
    """A small network over the view direction, with the host's keys.

    With random_aug, each image of a training step by itself gives way to black or white, with random_aug_prob.
    """

    @dataclass
    class Config(HostBackground.Config):
        share_aug_bg: bool = False  # accepted; as in threestudio-3dgs, each image has a draw of its own

    cfg: Config

    def augmented(self, color: Tensor, shared: bool = False) -> Tensor:  # [B, H, W, C]
        drawn = torch.rand(2, color.shape[0], 1, 1, 1)
        kept, value = sent(
            (drawn > torch.tensor([self.cfg.random_aug_prob, 0.5]).reshape(2, 1, 1, 1, 1)).float(), color
        )
        # The network stays in the graph with weight zero, so that each step has a gradient for all weights.
        return color * kept + value * (1 - kept)


# A checkout with threestudio-3dgs brings its own.
if "gaussian-mvdream-neural-environment-map-background" not in threestudio.__modules__:
    threestudio.register("gaussian-mvdream-neural-environment-map-background")(GaussianEnvironmentBackground)
