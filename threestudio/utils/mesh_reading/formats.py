"""The formats that the host reads by itself."""

from threestudio.utils.mesh_reading.gltf import read_gltf
from threestudio.utils.mesh_reading.obj import read_obj
from threestudio.utils.mesh_reading.off import read_off
from threestudio.utils.mesh_reading.ply import has_faces, read_ply
from threestudio.utils.mesh_reading.registry import MeshReader, register_mesh_reader
from threestudio.utils.mesh_reading.stl import read_stl

register_mesh_reader(MeshReader("gltf", (".glb", ".gltf"), read_gltf, up="+y", front="+z"))  # glTF 2.0, section 3.4
register_mesh_reader(MeshReader("obj", (".obj",), read_obj))
register_mesh_reader(MeshReader("ply", (".ply",), read_ply, recognizes=has_faces))
register_mesh_reader(MeshReader("stl", (".stl",), read_stl))
register_mesh_reader(MeshReader("off", (".off",), read_off))
