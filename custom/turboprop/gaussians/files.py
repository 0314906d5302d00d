"""3D Gaussian PLY files among the host's formats: read as meshes by all geometries, written by `gaussian-splatting`."""

from __future__ import annotations

from threestudio.models.exporters.formats import ExportFormat, register_export_format
from threestudio.models.geometry.base import BaseGeometry
from threestudio.utils.errors import UserError
from threestudio.utils.mesh_reading import MeshPart, MeshReader, register_mesh_reader
from threestudio.utils.mesh_reading.ply_tables import read_ply_header

from .compressed_ply import is_compressed
from .geometry import GaussianSplatting
from .meshing import EmptyDensity
from .ply import holds_gaussians

NAME = "3dgs-ply"


def read_surface(path: str, colors: bool) -> list[MeshPart]:
    """The surface of a file's Gaussians, with their colours. Raises UserError where they have none."""
    try:
        mesh = GaussianSplatting({"geometry_convert_from": path}).isosurface()
    except EmptyDensity as error:
        kind = "compressed 3D Gaussians" if is_compressed(read_ply_header(path).names("vertex")) else "3D Gaussians"
        raise UserError(f"{path} holds {kind}: {error}") from error
    faces = mesh.t_pos_idx
    rgb = mesh.v_rgb[faces].cpu().double().numpy() if colors and mesh.v_rgb is not None else None
    return [MeshPart(mesh.v_pos[faces].cpu().double().numpy(), rgb)]


def check_geometry(geometry: BaseGeometry) -> None:
    if not isinstance(geometry, GaussianSplatting):
        raise UserError(f"exporter.fmt: {NAME} is for geometries of Gaussians, {type(geometry).__name__} has none")


def write_gaussians(geometry: BaseGeometry, path: str) -> None:
    check_geometry(geometry)
    geometry.export_gaussians_ply(path)


register_mesh_reader(MeshReader(NAME, (".ply",), read_surface, recognizes=holds_gaussians))
register_export_format(ExportFormat(NAME, ".ply", check_geometry, write_gaussians))
