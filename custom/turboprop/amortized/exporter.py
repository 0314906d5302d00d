"""`turboprop-prompt-mesh-exporter`: a mesh for each prompt of a generator."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import threestudio
from threestudio.models.background.base import BaseBackground
from threestudio.models.exporters.base import Exporter, ExporterOutput
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.materials.base import BaseMaterial
from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import check_at_least

from .field import Field
from .meshing import MeshStatistics, extract_mesh

if TYPE_CHECKING:
    import trimesh

OUTLINE = "outline"
FORMATS = ("obj", "glb", "ply", "stl")


@threestudio.register("turboprop-prompt-mesh-exporter")
class PromptMeshExporter(Exporter):
    """Meshes by prompt, asked for with `mesh_of`; the system goes through the prompts."""

    @dataclass
    class Config(Exporter.Config):
        fmt: list[str] = field(default_factory=lambda: ["obj", "glb"])  # any of obj, glb, ply, stl
        save_name: str = "model"  # file name before its ending
        resolution: int = 96  # points of the marching cubes grid along an axis
        # signed distance of the surface, world units; outline: where pictures show it, a little outside the level 0
        level: float | str = "outline"
        min_component: float = 0.02  # pieces with fewer faces than this share of the largest piece are dropped

    cfg: Config

    def configure(self, geometry: BaseGeometry, material: BaseMaterial, background: BaseBackground) -> None:
        super().configure(geometry, material, background)
        unknown = [fmt for fmt in self.cfg.fmt if fmt not in FORMATS]
        if unknown or not self.cfg.fmt:
            raise UserError(f"exporter.fmt: expected some of {', '.join(FORMATS)}, got {list(self.cfg.fmt)}")
        check_at_least("exporter.resolution", self.cfg.resolution, 8)
        level = self.cfg.level
        if level != OUTLINE and (isinstance(level, str) or not math.isfinite(level)):
            raise UserError(f"exporter.level: expected a number or {OUTLINE}, got {level!r}")

    def mesh_of(
        self,
        cache: Field,
        outline_level: float,  # of the renderer, world units
    ) -> tuple[trimesh.Trimesh, MeshStatistics]:
        """The mesh of the field of one prompt. Raises EmptyField."""
        level = outline_level if self.cfg.level == OUTLINE else float(self.cfg.level)

        def color_of(points: Tensor, features: Tensor) -> Tensor:
            first = torch.zeros(len(points), dtype=torch.int64, device=points.device)
            return self.material.export(features=cache.heads.color_logits(features, first), positions=points)["albedo"]

        with torch.no_grad():
            return extract_mesh(cache, color_of, self.cfg.resolution, self.cfg.min_component, level)

    def __call__(self) -> list[ExporterOutput]:
        """Nothing: there is no mesh without a prompt."""
        return []
