"""glTF 2.0, .glb and .gltf: the triangles of the default scene with their base colours."""

from __future__ import annotations

from typing import Any

import numpy as np

import threestudio
from threestudio.utils.errors import UserError
from threestudio.utils.images import linear_to_srgb
from threestudio.utils.mesh_reading.gltf_container import GltfFile
from threestudio.utils.mesh_reading.gltf_extensions import DRACO, unread_extension
from threestudio.utils.mesh_reading.gltf_materials import GltfMaterials
from threestudio.utils.mesh_reading.gltf_nodes import PlacedMesh, placed_meshes
from threestudio.utils.mesh_reading.part import MeshPart, unit_colors
from threestudio.utils.mesh_reading.polygons import strip_triangles

_TRIANGLES, _STRIP, _FAN = 4, 5, 6  # section 5.24; points and lines have no surface


def read_gltf(path: str, colors: bool) -> list[MeshPart]:
    """One part for each primitive of each placed mesh; y up and front +z. Raises UserError for what is broken."""
    file = GltfFile(path)
    try:
        return _parts(file, colors)
    except UserError:
        raise
    # A file that leaves out a key, or has another type in its place.
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read, it is broken ({type(error).__name__}: {error})") from error


def _parts(file: GltfFile, colors: bool) -> list[MeshPart]:
    materials, parts = GltfMaterials(file), []
    for placed in placed_meshes(file):
        mesh = file.item("meshes", placed.mesh)
        for primitive in mesh["primitives"]:
            if primitive.get("mode", _TRIANGLES) not in (_TRIANGLES, _STRIP, _FAN):
                continue
            positions = _positions(file, mesh, primitive, placed)
            faces = _faces(file, primitive, len(positions))
            if placed.joints is None and placed.is_mirror:  # section 3.7.4
                faces = faces[:, ::-1]
            layout = _texture_coordinates(file, primitive, 0)
            part = MeshPart(positions[faces], layout=None if layout is None else layout[faces])
            if colors:
                _add_colors(file, materials, primitive, faces, part)
            parts.append(part)
    return parts


def _vertex_data(file: GltfFile, primitive: dict[str, Any], name: str) -> np.ndarray | None:
    index = primitive["attributes"].get(name)
    if index is None:
        return None
    if "bufferView" not in file.item("accessors", index) and DRACO in primitive.get("extensions", {}):
        raise unread_extension(file.path, DRACO)
    return file.accessor(index)


def _texture_coordinates(file: GltfFile, primitive: dict[str, Any], number: int) -> np.ndarray | None:
    """[V, 2], v down; None where the primitive has no set of this number."""
    uv = _vertex_data(file, primitive, f"TEXCOORD_{number}")
    if uv is None:
        return None
    if uv.shape[1] != 2:
        raise UserError(f"{file.path} is broken: its TEXCOORD_{number} has {uv.shape[1]} numbers, expected 2")
    return uv.astype(np.float64)


def _positions(file: GltfFile, mesh: dict[str, Any], primitive: dict[str, Any], placed: PlacedMesh) -> np.ndarray:
    """[V, 3] in the scene: moved by morph targets at their default weights, and by joints or the node's matrix."""
    positions = _vertex_data(file, primitive, "POSITION")
    if positions is None:
        return np.zeros((0, 3))
    positions = positions.astype(np.float64)
    weights = placed.node.get("weights", mesh.get("weights", []))
    for weight, target in zip(weights, primitive.get("targets", [])):
        if weight and "POSITION" in target:
            positions = positions + weight * file.accessor(target["POSITION"])
    if placed.joints is None or "JOINTS_0" not in primitive["attributes"]:
        return positions @ placed.matrix[:3, :3].T + placed.matrix[:3, 3]
    blended = np.zeros((len(positions), 4, 4))
    for number in range(4):
        joints = _vertex_data(file, primitive, f"JOINTS_{number}")
        shares = _vertex_data(file, primitive, f"WEIGHTS_{number}")
        if joints is None or shares is None:
            break
        if joints.size and joints.max() >= len(placed.joints):
            raise UserError(f"{file.path} is broken: a vertex names joint {joints.max()} of {len(placed.joints)}")
        for column in range(4):
            blended += shares[:, column, None, None] * placed.joints[joints[:, column]]
    return np.einsum("vij,vj->vi", blended[:, :3, :3], positions) + blended[:, :3, 3]


def _faces(file: GltfFile, primitive: dict[str, Any], n_vertices: int) -> np.ndarray:  # [F, 3]
    if "indices" in primitive:
        accessor = file.item("accessors", primitive["indices"])
        if "bufferView" not in accessor and DRACO in primitive.get("extensions", {}):
            raise unread_extension(file.path, DRACO)
        corners = file.accessor(primitive["indices"])[:, 0].astype(np.int64)
    else:
        corners = np.arange(n_vertices)
    if len(corners) and corners.max() >= n_vertices:
        raise UserError(f"{file.path} is broken: a triangle names vertex {corners.max()} of {n_vertices}")
    mode = primitive.get("mode", _TRIANGLES)
    if mode == _TRIANGLES:
        return corners[: len(corners) // 3 * 3].reshape(-1, 3)
    if mode == _FAN:
        second, third = corners[1:-1], corners[2:]
        return np.stack([second, third, np.broadcast_to(corners[:1], third.shape)], 1)
    return strip_triangles(corners)


def _add_colors(
    file: GltfFile, materials: GltfMaterials, primitive: dict[str, Any], faces: np.ndarray, part: MeshPart
) -> None:
    """Base colour: factor times texture times vertex colours (section 3.9.2); none where neither is."""
    vertex_rgb = _vertex_data(file, primitive, "COLOR_0")
    if vertex_rgb is None and "material" not in primitive:
        return
    linear = np.ones((*faces.shape, 3))
    if vertex_rgb is not None:
        # Integers have to be normalized; those that are not say so by their size.
        unit = unit_colors(vertex_rgb) if vertex_rgb.dtype.kind in "iu" else vertex_rgb[:, :3].clip(0, 1)
        linear = unit.astype(np.float64)[faces]
    if "material" in primitive:
        base = materials.base_color(primitive["material"])
        linear = linear * base.factor
        uv = None if base.texture is None else _texture_coordinates(file, primitive, base.uv_set)
        if uv is not None:
            part.uv = (uv if base.uv_matrix is None else uv @ base.uv_matrix[:, :2].T + base.uv_matrix[:, 2])[faces]
            part.texture = base.texture
        elif base.texture is not None:
            threestudio.warn(f"{file.path}: a texture is left out, its mesh has no TEXCOORD_{base.uv_set}")
    part.rgb = linear_to_srgb(linear)
