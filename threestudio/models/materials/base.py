"""Base class of materials: from a geometry's features at points to their colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from threestudio.utils.base import BaseModule


class BaseMaterial(BaseModule):
    @dataclass
    class Config(BaseModule.Config):
        pass

    cfg: Config
    requires_normal: bool = False  # whether forward needs shading_normal
    requires_tangent: bool = False  # whether forward needs tangent

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """features [..., F], viewdirs, positions, light_positions, shading_normal [..., 3], ... -> colours [..., C]."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def export(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """features [..., F] -> texture channels: albedo [..., 3] and, if it has them, metallic, roughness, bump.

        One that says `requires_normal` also gets the surface's unit normals, shading_normal [..., 3]. It may return
        those that it shades with in their place, of the world; the exporter bakes them into a normal map.
        """
        return {}
