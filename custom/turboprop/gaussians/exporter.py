"""`gaussian-mesh-exporter`: Gaussians as a closed, coloured mesh and as a 3D Gaussian PLY."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List

import threestudio
from threestudio.models.background.base import BaseBackground
from threestudio.models.exporters.base import Exporter, ExporterOutput
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.materials.base import BaseMaterial

from .geometry import GaussianSplatting
from .meshing import EmptyDensity

FORMATS = ("obj", "glb")


class GaussianMeshExporter(Exporter):
    @dataclass
    class Config(Exporter.Config):
        fmt: str = "obj"  # obj or glb, of the mesh, with vertex colours
        save_name: str = "model"  # file name of the mesh before its ending
        save_video: bool = True  # also render the test views

    cfg: Config

    def configure(self, geometry: BaseGeometry, material: BaseMaterial, background: BaseBackground) -> None:
        super().configure(geometry, material, background)
        if self.cfg.fmt not in FORMATS:
            raise ValueError(f"exporter.fmt: expected one of {', '.join(FORMATS)}, got {self.cfg.fmt!r}")
        if not isinstance(geometry, GaussianSplatting):
            raise ValueError(
                f"exporter_type: gaussian-mesh-exporter is for gaussian-splatting, got {type(geometry).__name__}"
            )

    def __call__(self) -> List[ExporterOutput]:
        """point_cloud.ply, and the mesh; without one, and with a warning, where the Gaussians have no surface."""
        outputs = [ExporterOutput("point_cloud.ply", "gaussians_ply", {"geometry": self.geometry})]
        try:
            mesh = self.geometry.isosurface()
        except EmptyDensity as error:
            threestudio.warn(f"no mesh: {error}")
            return outputs
        params = {"mesh": mesh, "save_vertex_color": True}
        return [*outputs, ExporterOutput(f"{self.cfg.save_name}.{self.cfg.fmt}", self.cfg.fmt, params)]


threestudio.register("turboprop-gaussian-mesh-exporter")(GaussianMeshExporter)
# threestudio-3dgs brings its own.
if "gaussian-mesh-exporter" not in threestudio.__modules__:
    threestudio.register("gaussian-mesh-exporter")(GaussianMeshExporter)
