"""Base classes of renderers: from rays or camera matrices to images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from threestudio.models.background.base import BaseBackground
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.scene import OfScene, SceneParts
from threestudio.utils.base import BaseModule


class Renderer(OfScene, BaseModule):
    @dataclass
    class Config(BaseModule.Config):
        radius: float = 1.0  # half the side of the cube that is rendered, world units

    cfg: Config

    def configure(self, geometry: BaseGeometry, material: BaseMaterial, background: BaseBackground) -> None:
        self._parts = SceneParts(geometry, material, background)
        r = float(self.cfg.radius)
        self.register_buffer("bbox", torch.tensor([[-r] * 3, [r] * 3], dtype=torch.float32))

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """A whole batch of the data module as keywords -> images [B, H, W, C] by name."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def set_geometry(self, geometry: BaseGeometry) -> None:
        self._parts = self._parts._replace(geometry=geometry)

    def set_material(self, material: BaseMaterial) -> None:
        self._parts = self._parts._replace(material=material)

    def set_background(self, background: BaseBackground) -> None:
        self._parts = self._parts._replace(background=background)


class VolumeRenderer(Renderer):
    """Renders by integrating along rays."""


class Rasterizer(Renderer):
    """Renders by projecting a surface."""
