"""`gaussian-mesh-exporter`: Gaussians as a closed, coloured mesh and as a 3D Gaussian PLY."""

from __future__ import annotations

from dataclasses import dataclass

import threestudio
from threestudio.models.background.base import BaseBackground
from threestudio.models.exporters.base import Exporter, ExporterOutput
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.materials.base import BaseMaterial
from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import check_choice

from .geometry import GaussianSplatting
from .meshing import EmptyDensity

OWN_FORMATS = ("obj", "glb")
HOST_FORMATS = ("obj-mtl", "ply", "stl", "3dgs-ply")  # written by the host's mesh-exporter


class GaussianMeshExporter(Exporter):
    @dataclass
    class Config(Exporter.Config):
        # obj, glb: vertex colours, and point_cloud.ply beside; obj-mtl, ply, stl, 3dgs-ply: what mesh-exporter makes of
        # them
        fmt: str = "obj"
        save_name: str = "model"  # file name of the mesh before its ending
        save_video: bool = True  # also render the test views

    cfg: Config

    def configure(self, geometry: BaseGeometry, material: BaseMaterial, background: BaseBackground) -> None:
        super().configure(geometry, material, background)
        check_choice("exporter.fmt", self.cfg.fmt, (*OWN_FORMATS, *HOST_FORMATS))
        if not isinstance(geometry, GaussianSplatting):
            raise UserError(
                f"exporter_type: gaussian-mesh-exporter is for gaussian-splatting, got {type(geometry).__name__}"
            )

    def __call__(self) -> list[ExporterOutput]:
        """point_cloud.ply, and the mesh; without one, and with a warning, where the Gaussians have no surface."""
        if self.cfg.fmt in HOST_FORMATS:
            config = {"fmt": self.cfg.fmt, "save_name": self.cfg.save_name}
            return threestudio.find("mesh-exporter")(config, self.geometry, self.material, self.background)()
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
