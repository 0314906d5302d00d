"""OFF, with the colours of its vertices (COFF) or of its faces."""

from __future__ import annotations

import codecs
import re

import numpy as np

from threestudio.utils.errors import UserError
from threestudio.utils.mesh_reading.part import MeshPart, unit_colors
from threestudio.utils.mesh_reading.polygons import check_corners, triangulate

# The Geomview manual, "OFF Files", has the letters in the order ST C N; MeshLab writes N C ST.
_HEADER = re.compile(r"((?:ST|C|N)*)(4)?(n)?OFF")


def read_off(path: str, colors: bool) -> list[MeshPart]:
    """Raises UserError for a file that is cut short, broken, or of more than three dimensions."""
    with open(path, "rb") as file:
        text = file.read().removeprefix(codecs.BOM_UTF8).decode("latin-1")
    rows = [words for line in text.splitlines() if (words := line.split("#")[0].split())]
    prefixes, rows = _header(path, rows)
    try:
        n_vertices, n_faces = int(rows[0][0]), int(rows[0][1])
    except (IndexError, ValueError) as error:
        raise UserError(f"{path} is no OFF file: expected its numbers of vertices and faces") from error
    if min(n_vertices, n_faces) < 0:
        raise UserError(f"{path} is broken: it counts {n_vertices} vertices and {n_faces} faces")
    rows = rows[1:]
    if len(rows) < n_vertices + n_faces:
        raise UserError(f"{path} is cut short: {len(rows)} of {n_vertices + n_faces} vertices and faces are there")
    vertices, vertex_rgb = _vertices(path, rows[:n_vertices], prefixes)
    counts, corners, face_rgb = _faces(path, rows[n_vertices : n_vertices + n_faces], n_vertices)
    triangles = triangulate(counts, vertices[corners])
    part = MeshPart(vertices[corners[triangles.corners]])
    if colors and vertex_rgb is not None:
        part.rgb = vertex_rgb[corners[triangles.corners]]
    elif colors and face_rgb is not None:
        part.rgb = np.repeat(face_rgb[triangles.polygon][:, None], 3, 1)
    return [part]


def _header(path: str, rows: list[list[str]]) -> tuple[str, list[list[str]]]:
    """The letters before OFF, and the rows behind the header; the header may be missing, or share the first row."""
    word = rows[0][0] if rows else ""
    match = _HEADER.fullmatch(word.upper() if word.islower() else word)
    if match is None:
        return "", rows
    if match.group(2) or match.group(3):
        raise UserError(f"{path}: an OFF file of other than three dimensions ({rows[0][0]}) is not read")
    rest = rows[0][1:]
    if [word.upper() for word in rest] == ["BINARY"]:
        raise UserError(f"{path}: a binary OFF file is not read; write it as text")
    return match.group(1) or "", ([rest] if rest else []) + rows[1:]


def _numbers(path: str, rows: list[list[str]]) -> np.ndarray:
    try:
        return np.array(rows, np.float64)
    except ValueError as error:
        raise UserError(f"{path} is broken: a row is too short or not made of numbers ({error})") from error


def _vertices(path: str, rows: list[list[str]], prefixes: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Positions [V, 3] and colours [V, 3]. Behind a position come a normal (N), a colour (C), texture coordinates.

    MeshLab, whose header has N before C, writes the colour before the normal.
    """
    positions = _numbers(path, [row[:3] for row in rows]) if rows else np.zeros((0, 3))
    if positions.shape[1] != 3:
        raise UserError(f"{path} is broken: a vertex has fewer than three numbers")
    start = 6 if "N" in prefixes and "NC" not in prefixes else 3
    # Programs write colours without a C before OFF too: then every row has 6 or 7 numbers.
    colored = "C" in prefixes or not prefixes and rows and {len(row) for row in rows} <= {6, 7}
    if not colored:
        return positions, None
    colors = [row[start : start + 3] for row in rows]
    if any(len(row) < 3 for row in colors):
        raise UserError(f"{path} is broken: a vertex has no colour, but others have")
    return positions, _unit(path, colors)


def _unit(path: str, rows: list[list[str]]) -> np.ndarray:
    """Colours [N, 3] in [0, 1]: integers count to 255, numbers with a point to 1, or to 255 where they exceed 1."""
    numbers = _numbers(path, rows)
    is_integer = not any(set(word) & set(".eE") for row in rows for word in row)
    if is_integer and len(numbers) and numbers.max() > 1:
        return unit_colors(numbers.clip(0, 255).astype(np.uint8))
    return unit_colors(numbers)


def _faces(path: str, rows: list[list[str]], n_vertices: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Corners of each face [F], all corners one after another, and colours [F, 3] where the faces have any.

    A single number behind a face's corners is an entry of a colour map that is elsewhere: no colour.
    """
    try:
        counts = np.array([int(row[0]) for row in rows], np.int64)
        corners = [[int(word) for word in row[1 : 1 + n]] for row, n in zip(rows, counts)]
    except ValueError as error:
        raise UserError(f"{path} is broken: a face is not made of whole numbers ({error})") from error
    if any(len(row) < n or n < 1 for row, n in zip(corners, counts)):
        raise UserError(f"{path} is cut short or broken: a face has fewer corners than it counts")
    flat = np.array([index for row in corners for index in row], np.int64)
    check_corners(path, flat, n_vertices)
    tails = [row[1 + n :] for row, n in zip(rows, counts)]
    given = [len(tail) >= 3 for tail in tails]
    if not any(given):
        return counts, flat, None
    rgb = np.full((len(rows), 3), 0.666)  # what the manual gives faces without a colour
    rgb[given] = _unit(path, [tail[:3] for tail, has in zip(tails, given) if has])
    return counts, flat, rgb
