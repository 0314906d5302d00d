"""Stable Diffusion's latents to colours by one matrix: the refinement stage of Latent-NeRF (Metzer et al. 2022)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

import threestudio
from threestudio.models.materials.base import BaseMaterial
from threestudio.utils.errors import UserError

# Red, green and blue, in [-1, 1], of each channel of the latents of Stable Diffusion 1 and 2: Keturn's linear fit
# ("Decoding latents to RGB without upscaling", Hugging Face forum, 2022), which Latent-NeRF starts from.
LATENT_COLORS = (
    (0.298, 0.207, 0.208),
    (0.187, 0.286, 0.173),
    (-0.158, 0.189, 0.264),
    (-0.184, -0.271, -0.473),
)


@threestudio.register("sd-latent-adapter-material")
class StableDiffusionLatentAdapterMaterial(BaseMaterial):
    def configure(self) -> None:
        self.adapter = nn.Parameter(torch.tensor(LATENT_COLORS))

    def forward(self, features: Tensor, **kwargs: Any) -> Tensor:
        """features [..., 4], latents -> colours [..., 3] in [0, 1]."""
        if features.shape[-1] != self.adapter.shape[0]:
            raise UserError(
                f"sd-latent-adapter-material: expected 4 feature channels, got {features.shape[-1]} "
                "(geometry.n_feature_dims)"
            )
        return ((features @ self.adapter + 1.0) / 2.0).clamp(0.0, 1.0)

    def export(self, features: Tensor, **kwargs: Any) -> dict[str, Any]:
        return {"albedo": self(features)}
