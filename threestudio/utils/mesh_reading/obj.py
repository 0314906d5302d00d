"""OBJ with its material libraries: polygons with texture, vertex colours or plain colour."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

import threestudio
from threestudio.utils.errors import UserError
from threestudio.utils.mesh_reading.mtl import Material, find_material, map_of, read_materials, text_lines, texture_of
from threestudio.utils.mesh_reading.named_files import find_named_file
from threestudio.utils.mesh_reading.part import GREY, MeshPart, all_white, unit_colors
from threestudio.utils.mesh_reading.polygons import check_corners, triangulate
from threestudio.utils.mesh_reading.surface_colors import Texture


@dataclass
class _Lines:
    """What an OBJ file's lines say. Indices count from 0; -1 is none."""

    vertices: list[list[str]] = field(default_factory=list)  # 3 numbers or more
    texture: list[list[str]] = field(default_factory=list)  # 1 number or more
    counts: list[int] = field(default_factory=list)  # corners of each face
    corner_v: list[int] = field(default_factory=list)
    corner_vt: list[int] = field(default_factory=list)
    face_material: list[int] = field(default_factory=list)  # index into materials
    materials: list[str | None] = field(default_factory=lambda: [None])  # None: before the first usemtl
    libraries: list[str] = field(default_factory=list)  # what stands behind mtllib


def read_obj(path: str, colors: bool) -> list[MeshPart]:
    """A part for each material. The texture goes before vertex colours, and they before the material's plain colour:
    programs that write several write the same colour again, or a default. Raises UserError for what is broken."""
    lines = _read_lines(path)
    vertices, vertex_rgb = _vertices(path, lines.vertices)
    corner_v = np.array(lines.corner_v, np.int64)
    check_corners(path, corner_v, len(vertices))
    triangles = triangulate(np.array(lines.counts, np.int64), vertices[corner_v])
    faces = corner_v[triangles.corners]
    uv, has_uv = _texture_coordinates(path, lines, triangles.corners)
    layout = np.where(has_uv[:, None, None], uv * [1.0, -1.0] + [0.0, 1.0], np.nan) if has_uv.any() else None
    if not colors:
        return [MeshPart(vertices[faces], layout=layout)] if len(faces) else []
    materials = _materials_of(path, lines)
    textures: dict[str, Texture] = {}
    parts = []
    face_material = np.array(lines.face_material, np.int64)[triangles.polygon]
    for index in np.unique(face_material):
        chosen = np.flatnonzero(face_material == index)
        material = materials[index]
        rgb = _plain_colors(vertex_rgb, faces[chosen], material)
        textured = np.zeros(len(chosen), bool)
        if material is not None and material.map_line and has_uv[chosen].any():
            textured = has_uv[chosen]
            parts.append(_textured_part(vertices[faces[chosen[textured]]], uv[chosen[textured]], material, textures))
            parts[-1].layout = layout[chosen[textured]]
        if material is not None and material.map_line and not textured.all():
            count = int((~textured).sum())
            threestudio.warn(f"{path}: {count} triangles under a texture have no texture coordinates, it is left out")
        if not textured.all():
            plain = chosen[~textured]
            parts.append(MeshPart(vertices[faces[plain]], None if rgb is None else rgb[~textured]))
            parts[-1].layout = None if layout is None else layout[plain]
    return parts


def _textured_part(
    corners: np.ndarray, uv: np.ndarray, material: Material, textures: dict[str, Texture]
) -> MeshPart:  # [F, 3, 3], [F, 3, 2] v up
    picture, options = map_of(material)
    key = f"{picture} {options}"
    if key not in textures:
        textures[key] = texture_of(picture, options)
    return MeshPart(corners, None, options.moved(uv), textures[key])


def _plain_colors(vertex_rgb: _VertexColors | None, faces: np.ndarray, material: Material | None) -> np.ndarray | None:
    """[F, 3, 3] of faces without texture; None where neither vertices nor material say a colour."""
    plain = None if material is None else material.diffuse
    if plain is None and material is not None and material.map_line:
        plain = (GREY,) * 3  # of faces without texture coordinates under a material that is all texture
    colored = None if vertex_rgb is None else vertex_rgb.given[faces].all(1)
    if vertex_rgb is None or not colored.any() or (plain is not None and all_white(vertex_rgb.rgb[faces[colored]])):
        return None if plain is None else np.broadcast_to(np.array(plain), (*faces.shape, 3))
    rgb = np.empty((*faces.shape, 3))
    rgb[:] = (GREY,) * 3 if plain is None else plain
    rgb[colored] = vertex_rgb.rgb[faces[colored]]
    return rgb


def _read_lines(path: str) -> _Lines:
    result = _Lines()
    material_index = {None: 0}
    current = 0
    for number, line in enumerate(text_lines(path), 1):
        words = line.split(None, 1)
        keyword = words[0].lower() if words else ""
        if len(words) < 2:
            if keyword in ("v", "f", "vt"):
                raise _broken(path, number, line)
            continue
        rest = words[1]
        if keyword == "v":
            result.vertices.append(rest.split("#")[0].split())
            if len(result.vertices[-1]) < 3:
                raise _broken(path, number, line)
        elif keyword == "vt":
            result.texture.append(rest.split("#")[0].split())
        elif keyword in ("f", "fo"):
            _add_face(path, number, line, rest, result)
            result.face_material.append(current)
        elif keyword == "usemtl":
            name = rest.strip()
            current = material_index.setdefault(name, len(result.materials))
            if current == len(result.materials):
                result.materials.append(name)
        elif keyword == "mtllib":
            result.libraries.append(rest.strip())
    return result


def _add_face(path: str, number: int, line: str, rest: str, result: _Lines) -> None:
    """Corners as v, v/vt, v//vn or v/vt/vn; a negative index counts back from what stands above this line."""
    corners = rest.split("#")[0].split()
    n_vertices, n_texture = len(result.vertices), len(result.texture)
    try:
        for corner in corners:
            indices = corner.split("/")
            if indices[-1] == "" and indices[1:] != [""] * 2:
                raise ValueError("a corner ends in a slash")
            vertex = int(indices[0])
            result.corner_v.append(vertex - 1 if vertex > 0 else n_vertices + vertex if vertex < 0 else -1)
            coordinate = int(indices[1]) if len(indices) > 1 and indices[1] else 0
            result.corner_vt.append(coordinate - 1 if coordinate > 0 else n_texture + coordinate if coordinate else -1)
    except ValueError as error:
        raise _broken(path, number, line) from error
    if len(corners) < 3:
        raise _broken(path, number, line)
    result.counts.append(len(corners))


def _broken(path: str, number: int, line: str) -> UserError:
    return UserError(f"{path} is cut short or broken: its line {number} is {line.strip()[:80]!r}")


class _VertexColors(NamedTuple):
    rgb: np.ndarray  # [V, 3] in [0, 1]
    given: np.ndarray  # [V] bool: whether the vertex has one


def _vertices(path: str, rows: list[list[str]]) -> tuple[np.ndarray, _VertexColors | None]:
    """Positions [V, 3] and, where lines go on with r g b, colours; one number more is a weight or an opacity."""
    try:
        positions = np.array([row[:3] for row in rows], np.float64).reshape(-1, 3)
        given = np.array([len(row) >= 6 for row in rows], bool)
        colors = np.array([row[3:6] for row in rows if len(row) >= 6], np.float64).reshape(-1, 3)
    except ValueError as error:
        raise UserError(f"{path} is broken: a vertex is not made of numbers ({error})") from error
    if not given.any():
        return positions, None
    rgb = np.full((len(rows), 3), GREY)
    rgb[given] = unit_colors(colors)
    return positions, _VertexColors(rgb, given)


def _texture_coordinates(path: str, lines: _Lines, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[F, 3, 2], v up, and whether a face has them [F]."""
    index = np.array(lines.corner_vt, np.int64)[corners]  # [F, 3]
    if len(index) and index.max() >= len(lines.texture) or (index < -1).any():
        raise UserError(f"{path} is broken: a face names a texture coordinate that is not there")
    has_uv = (index >= 0).all(1)
    try:
        table = np.array([(*row, "0")[:2] for row in lines.texture], np.float64).reshape(-1, 2)
    except ValueError as error:
        raise UserError(f"{path} is broken: a texture coordinate is not made of numbers ({error})") from error
    uv = np.zeros((*index.shape, 2))
    uv[has_uv] = table[index[has_uv]]
    return uv, has_uv


def _materials_of(path: str, lines: _Lines) -> list[Material | None]:
    """The material of each name of `lines.materials`; None where it has none.

    Faces before any usemtl get the library's material where it has just one.
    """
    found: dict[str, Material] = {}
    for line in lines.libraries:
        for library in library_files(path, line):
            found = {**read_materials(library), **found}
    result: list[Material | None] = []
    for index in range(len(lines.materials)):
        name, used = lines.materials[index], index in lines.face_material
        material = find_material(found, name) if name is not None else None
        if name is None and used and lines.libraries:
            material = next(iter(found.values())) if len(found) == 1 else None
            if material is None and len(found) > 1:
                threestudio.warn(f"{path}: faces without usemtl have no material, its libraries have {len(found)}")
        elif name is not None and material is None and used and lines.libraries:
            threestudio.warn(f"{path}: usemtl names {name}, which is in none of its material libraries")
        result.append(material)
    return result


def library_files(path: str, line: str) -> list[str]:
    """Paths of what an mtllib line names: a name that may hold blanks, or several. UserError if one is not there."""
    folder = os.path.dirname(path)
    words = re.findall(r'"[^"]*"|\S+', line)
    files, at = [], 0
    while at < len(words):
        # The longest name that is there: a name with blanks goes before several names.
        ends = range(len(words), at, -1)
        found = next(((end, file) for end in ends if (file := find_named_file(folder, " ".join(words[at:end])))), None)
        if found is None and files and words[at].startswith("#"):
            break  # a comment
        if found is None:
            name = line if at == 0 and not any(word.lower().endswith(".mtl") for word in words[:-1]) else words[at]
            raise UserError(f"{path} names the material file {name.strip()}, which is not there")
        at, file = found
        files.append(file)
    return files
