"""Meshes that others made: one reader for each format, and one way to a Mesh with its colours for all.

`load_mesh_file` is what the rest of the project calls. A reader gives MeshParts; a plugin adds one for a format of its
own with `register_mesh_reader`.
"""

from threestudio.utils.mesh_reading import formats
from threestudio.utils.mesh_reading.loading import AXES, load_mesh_file, rotation_to_world
from threestudio.utils.mesh_reading.part import GREY, MeshPart
from threestudio.utils.mesh_reading.registry import MeshReader, mesh_endings, register_mesh_reader
from threestudio.utils.mesh_reading.surface_colors import SurfaceColors, Texture

__all__ = [
    "AXES",
    "GREY",
    "MeshPart",
    "MeshReader",
    "SurfaceColors",
    "Texture",
    "load_mesh_file",
    "mesh_endings",
    "register_mesh_reader",
    "rotation_to_world",
]
