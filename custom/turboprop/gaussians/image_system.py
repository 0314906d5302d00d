"""`gaussian-splatting-zero123-system`: Gaussians from one picture, as threestudio-3dgs has it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import threestudio
from threestudio.systems.reference_losses import covered_color_loss

from .training import GaussianTraining, within_pictures


class GaussianZero123System(GaussianTraining, threestudio.find("zero123-system")):
    """zero123-system's step on Gaussians; the colours count where the picture shows the object alone.

    Density control goes by the views of both parts. In threestudio-3dgs it goes by the picture's alone.
    """

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        return within_pictures(super().forward(batch))

    def picture_color_loss(self, out: dict[str, Any], batch: dict[str, Any]) -> Tensor:
        return covered_color_loss(out["comp_rgb"], batch["rgb"], batch["mask"])


# threestudio-3dgs brings its own.
if "gaussian-splatting-zero123-system" not in threestudio.__modules__:
    threestudio.register("gaussian-splatting-zero123-system")(GaussianZero123System)
