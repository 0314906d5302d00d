"""PLY meshes: faces or triangle strips, with textures, and colours of vertices or faces."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

import threestudio
from threestudio.utils.errors import UserError
from threestudio.utils.mesh_reading.named_files import named_file, read_picture
from threestudio.utils.mesh_reading.part import MeshPart, all_white, unit_colors
from threestudio.utils.mesh_reading.ply_tables import Lists, Table, read_ply_header, read_ply_tables
from threestudio.utils.mesh_reading.polygons import check_corners, strip_triangles, triangulate
from threestudio.utils.mesh_reading.surface_colors import Texture

_INDICES = ("vertex_indices", "vertex_index")
_RGB = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))
_UV = (("s", "t"), ("u", "v"), ("texture_u", "texture_v"))
_TEXTURE = "texturefile"  # a comment that names a picture


def has_faces(path: str) -> bool:
    """Whether a PLY file says that it holds a mesh; a file without a header says nothing else, and counts as one."""
    try:
        header = read_ply_header(path)
    except UserError:
        return True
    return header.rows("face") > 0 or header.rows("tristrips") > 0


def read_ply(path: str, colors: bool) -> list[MeshPart]:
    """Raises UserError for a file that is cut short or broken, holds points alone, or lacks a picture that it names."""
    header = read_ply_header(path)
    if not has_faces(path):
        raise UserError(f"{path} holds points, no triangles")
    tables = read_ply_tables(path, header, ("vertex", "face", "tristrips"))
    vertex = tables.get("vertex", {})
    missing = [name for name in "xyz" if not isinstance(vertex.get(name), np.ndarray)]
    if missing:
        raise UserError(f"{path} is broken: its vertices have no {', '.join(missing)}")
    vertices = np.stack([vertex[name] for name in "xyz"], 1).astype(np.float64)
    faces, face = _faces(path, tables, vertices)
    uv = _texture_coordinates(path, vertex, face, faces) if len(faces.corners) else None
    if not colors or len(faces.corners) == 0:
        return [MeshPart(vertices[faces.corners], layout=uv)]
    rgb = _colors(vertex, face, faces)
    pictures = [comment.split(None, 1)[1] for comment in header.comments if _names_picture(comment)]
    if uv is None or not pictures:
        if pictures:
            threestudio.warn(f"{path}: the texture {pictures[0]} is left out, the mesh has no texture coordinates")
        return [MeshPart(vertices[faces.corners], rgb, layout=uv)]
    return _textured_parts(path, vertices[faces.corners], uv, pictures, _texture_numbers(face, faces), rgb)


def _names_picture(comment: str) -> bool:
    words = comment.split(None, 1)
    return len(words) == 2 and words[0].lower() == _TEXTURE


class _Faces(NamedTuple):
    corners: np.ndarray  # [T, 3] vertices
    wedge: np.ndarray  # [T, 3] which of its polygon's corners each is
    polygon: np.ndarray  # [T] row of the face


def _faces(path: str, tables: dict[str, Table], vertices: np.ndarray) -> tuple[_Faces, Table]:
    """Triangles, and the table that their rows are in."""
    face = tables.get("face", {})
    lists = next((face[name] for name in _INDICES if isinstance(face.get(name), Lists)), None)
    if lists is not None and len(lists.counts):
        indices = _vertex_indices(path, lists.values, len(vertices))
        triangles = triangulate(lists.counts, vertices[indices])
        start = np.cumsum(lists.counts) - lists.counts
        wedge = triangles.corners - start[triangles.polygon][:, None]
        return _Faces(indices[triangles.corners], wedge, triangles.polygon), face
    strips = next((tables["tristrips"][name] for name in _INDICES if "tristrips" in tables), None)
    if not isinstance(strips, Lists):
        raise UserError(f"{path} is broken: its faces have no list {' or '.join(_INDICES)}")
    corners = _vertex_indices(path, _strip_triangles(strips), len(vertices))
    none = np.zeros(len(corners), np.int64)
    return _Faces(corners, np.zeros_like(corners), none), {}


def _vertex_indices(path: str, values: np.ndarray, n_vertices: int) -> np.ndarray:
    """The values as integers: some programs store them as floats. Raises UserError for what is no vertex's."""
    whole = np.where(values == np.floor(values), values, -1)
    check_corners(path, whole, n_vertices)
    return whole.astype(np.int64)


def _strip_triangles(strips: Lists) -> np.ndarray:
    """[T, 3] of strips in which -1 ends one."""
    result = []
    for strip in np.split(strips.values.astype(np.int64), np.cumsum(strips.counts)[:-1]):
        for run in np.split(strip, np.flatnonzero(strip < 0)):
            run = run[run >= 0]
            if len(run) >= 3:
                result.append(strip_triangles(run))
    return np.concatenate(result) if result else np.zeros((0, 3), np.int64)


def _colors(vertex: Table, face: Table, faces: _Faces) -> np.ndarray | None:
    """[T, 3, 3]: the vertices' colours, or the faces' where the vertices have none or are all white."""
    vertex_rgb, face_rgb = _rgb_of(vertex), _rgb_of(face)
    if vertex_rgb is not None and (face_rgb is None or not all_white(vertex_rgb)):
        return vertex_rgb[faces.corners]
    if face_rgb is not None:
        return np.repeat(face_rgb[faces.polygon][:, None], 3, 1)
    return None


def _rgb_of(table: Table) -> np.ndarray | None:  # [N, 3]
    for names in _RGB:
        if all(isinstance(table.get(name), np.ndarray) for name in names):
            return unit_colors(np.stack([table[name] for name in names], 1))
    return None


def _texture_coordinates(path: str, vertex: Table, face: Table, faces: _Faces) -> np.ndarray | None:
    """[T, 3, 2], v down; a face's own (u v u v ..) go before its vertices'. PLY's point up, as OBJ's.

    NaN of a face that has none, where others have.
    """
    own = face.get("texcoord")
    if isinstance(own, Lists) and len(own.values):
        start = np.cumsum(own.counts) - own.counts
        at = start[faces.polygon][:, None] + 2 * faces.wedge
        without = own.counts[faces.polygon] == 0
        if (own.counts[faces.polygon][:, None] < 2 * (faces.wedge + 1))[~without].any():
            raise UserError(f"{path} is broken: a face has fewer texture coordinates than corners")
        uv = np.full((*at.shape, 2), np.nan)
        uv[~without] = np.stack([own.values[at[~without]], own.values[at[~without] + 1]], -1)
    else:
        names = next((names for names in _UV if all(isinstance(vertex.get(n), np.ndarray) for n in names)), None)
        if names is None:
            return None
        uv = np.stack([vertex[name] for name in names], 1)[faces.corners]
    return uv.astype(np.float64) * [1.0, -1.0] + [0.0, 1.0]


def _texture_numbers(face: Table, faces: _Faces) -> np.ndarray:  # [T]
    numbers = face.get("texnumber")
    return numbers[faces.polygon].astype(np.int64) if isinstance(numbers, np.ndarray) else np.zeros_like(faces.polygon)


def _textured_parts(
    path: str,
    corners: np.ndarray,  # [T, 3, 3]
    uv: np.ndarray,  # [T, 3, 2]
    pictures: list[str],
    numbers: np.ndarray,  # [T] index into pictures; others have no texture
    rgb: np.ndarray | None,  # [T, 3, 3]
) -> list[MeshPart]:
    parts = []
    without = ~np.isfinite(uv).all((1, 2))
    if without.any():
        threestudio.warn(f"{path}: {without.sum()} triangles have no texture coordinates, they have no texture")
    numbers = np.where(without, -1, numbers)
    for number in np.unique(numbers):
        chosen = numbers == number
        if 0 <= number < len(pictures):
            picture = named_file(path, pictures[number], "the texture")
            texture = Texture(read_picture(picture, picture))
            parts.append(MeshPart(corners[chosen], None, uv[chosen], texture, uv[chosen]))
        else:
            parts.append(MeshPart(corners[chosen], None if rgb is None else rgb[chosen], layout=uv[chosen]))
    return parts
