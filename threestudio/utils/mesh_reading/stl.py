"""STL, in bytes or in text: triangles alone."""

from __future__ import annotations

import codecs
import re
import struct

import numpy as np

from threestudio.utils.errors import UserError
from threestudio.utils.mesh_reading.part import MeshPart

_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_HEADER = 84  # bytes, the last four of them the number of triangles


def read_stl(path: str, colors: bool) -> list[MeshPart]:
    """Raises UserError for a file that is cut short or broken. STL has no colours."""
    with open(path, "rb") as file:
        content = file.read()
    text = content.removeprefix(codecs.BOM_UTF8).lstrip()
    if _is_text(content if len(text) == len(content) else text):
        return _of_text(path, text.decode("latin-1"))
    if len(content) < _HEADER:
        raise UserError(f"{path} is cut short: an STL file has a header of {_HEADER} bytes, this one {len(content)}")
    (count,) = struct.unpack("<I", content[_HEADER - 4 : _HEADER])
    needed = _HEADER + _TRIANGLE.itemsize * count
    if len(content) < needed:
        raise UserError(f"{path} is cut short: {len(content)} bytes, {needed} are needed for its {count} triangles")
    table = np.frombuffer(content, _TRIANGLE, count, _HEADER)
    return [MeshPart(table["corners"].astype(np.float64))] if count else []


def _is_text(content: bytes) -> bool:
    """Files in bytes may begin with "solid" too; their length, or a zero among their first bytes, tells."""
    if content[:5].lower() != b"solid" or b"\0" in content[:_HEADER]:
        return False
    if len(content) < _HEADER:
        return True
    (count,) = struct.unpack("<I", content[_HEADER - 4 : _HEADER])
    return len(content) != _HEADER + _TRIANGLE.itemsize * count


def _of_text(path: str, text: str) -> list[MeshPart]:
    if "endsolid" not in text[-256:].lower():
        raise UserError(f"{path} is cut short: an STL file in text ends with endsolid")
    rows = re.findall(r"^\s*vertex\s+(\S+)\s+(\S+)\s+(\S+)\s*$", text, re.IGNORECASE | re.MULTILINE)
    try:
        corners = np.array(rows, np.float64).reshape(-1, 3)
    except ValueError as error:
        raise UserError(f"{path} is broken: a vertex is not made of numbers ({error})") from error
    if len(corners) % 3:
        raise UserError(f"{path} is broken: its {len(corners)} vertices make no whole number of triangles")
    return [MeshPart(corners.reshape(-1, 3, 3))] if len(corners) else []
