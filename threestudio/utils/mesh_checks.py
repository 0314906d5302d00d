"""Whether a mesh file is whole, as its own format says: readers take what there is of a file that was cut short."""

from __future__ import annotations

import json
import os
import struct
from typing import List

from threestudio.utils.errors import UserError


def check_whole(path: str, ending: str) -> None:
    """Raises UserError where the file is empty or shorter than it says."""
    size = os.path.getsize(path)
    if size == 0:
        raise UserError(f"{path} is empty")
    if ending == ".glb":
        _check_glb(path, size)
    elif ending == ".ply":
        _check_ply(path, size)
    elif ending == ".stl":
        _check_stl(path, size)
    elif ending == ".obj":
        _check_obj(path)


def holds_gaussians(path: str) -> bool:
    """Whether a file is a PLY of 3D Gaussians: points with f_dc_0 in its header, and no faces."""
    if not path.lower().endswith(".ply") or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        header = file.read(2**16).split(b"end_header")[0]
    return b"f_dc_0" in header and b"element face" not in header


def _check_glb(path: str, size: int) -> None:
    with open(path, "rb") as file:
        head = file.read(12)
    if len(head) < 12 or head[:4] != b"glTF":
        raise UserError(f"{path} is no GLB file: it does not begin with glTF")
    _, version, length = struct.unpack("<4sII", head)
    if size < length:
        raise UserError(f"{path} is cut short: {size} of {length} bytes are there")


_PLY_BYTES = {"char": 1, "uchar": 1, "int8": 1, "uint8": 1, "short": 2, "ushort": 2, "int16": 2, "uint16": 2}
_PLY_BYTES |= {"int": 4, "uint": 4, "int32": 4, "uint32": 4, "float": 4, "float32": 4, "double": 8, "float64": 8}


def _check_ply(path: str, size: int) -> None:
    """A PLY's header counts its rows; the least size of a row gives the least size of the file."""
    with open(path, "rb") as file:
        header: List[List[str]] = []
        for line in file:
            header.append(line.decode("ascii", "replace").split() or [""])
            if header[-1] == ["end_header"] or file.tell() > 2**20:
                break
        start = file.tell()
    if header[0] != ["ply"] or header[-1] != ["end_header"]:
        raise UserError(f"{path} is no PLY file, or is cut short in its header")
    text = ["format", "ascii"] in [words[:2] for words in header]
    try:
        rows = _rows_of(header, text)
    except (IndexError, KeyError, ValueError) as error:
        raise UserError(f"{path} has a broken PLY header") from error
    faces = sum(count for name, count, _ in rows if name == "face")
    names = [words[-1] for words in header if words[0] == "property"]
    if faces == 0 and "f_dc_0" in names:
        raise UserError(f"{path} holds 3D Gaussians, no triangles")
    if faces == 0:
        raise UserError(f"{path} holds points, no triangles")
    needed = start + sum(count * row for _, count, row in rows)
    if size < needed:
        raise UserError(f"{path} is cut short: {size} bytes, at least {needed} are needed for what its header counts")


def _rows_of(header: List[List[str]], text: bool) -> List[tuple]:
    """(name, count, least bytes of a row) of each element. In text a number takes two characters at least."""
    rows: List[list] = []
    for words in header:
        if words[0] == "element":
            rows.append([words[1], int(words[2]), 0])
        elif words[0] == "property" and words[1] == "list":
            # A list that has to do with a mesh is a triangle at least.
            least = 3 if rows[-1][0] == "face" and words[-1] in ("vertex_indices", "vertex_index") else 0
            rows[-1][2] += 2 * (1 + least) if text else _PLY_BYTES[words[2]] + least * _PLY_BYTES[words[3]]
        elif words[0] == "property":
            rows[-1][2] += 2 if text else _PLY_BYTES[words[1]]
    return [tuple(row) for row in rows]


def _check_stl(path: str, size: int) -> None:
    with open(path, "rb") as file:
        head = file.read(84)
        file.seek(max(0, size - 256))
        tail = file.read()
    if head[:5].lower() == b"solid" and b"\0" not in head:
        if b"endsolid" not in tail.lower():
            raise UserError(f"{path} is cut short: an STL file in text ends with endsolid")
        return
    if len(head) < 84:
        raise UserError(f"{path} is cut short: an STL file has a header of 84 bytes, this one {size}")
    (count,) = struct.unpack("<I", head[80:84])
    if size < 84 + 50 * count:
        raise UserError(f"{path} is cut short: {size} bytes, {84 + 50 * count} are needed for its {count} triangles")


def _check_obj(path: str) -> None:
    """An OBJ counts nothing; a last line that ends in the middle of a number or a face is all that shows."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 4096))
        last = file.read().splitlines()[-1].split()
    least = {b"v": 4, b"f": 4, b"vn": 4, b"vt": 3}.get(last[0], 0) if last else 0
    if last and (len(last) < least or last[0] == b"f" and last[-1].endswith(b"/")):
        raise UserError(f"{path} is cut short: its last line is {b' '.join(last).decode('ascii', 'replace')!r}")


def check_obj_materials(path: str, ending: str) -> None:
    """Raises UserError where a texture is missing that an OBJ's material, or a .gltf file, names."""
    folder = os.path.dirname(path)
    if ending == ".gltf":
        with open(path, encoding="utf-8", errors="replace") as file:
            try:
                images = json.load(file).get("images", [])
            except (ValueError, AttributeError) as error:
                raise UserError(f"{path} is no glTF file, or is cut short") from error
        names = [image.get("uri", "data:") for image in images]
        _check_files(path, folder, [name for name in names if not name.startswith("data:")], "the texture")
    if ending != ".obj":
        return
    libraries = _values(path, b"mtllib")
    _check_files(path, folder, libraries, "the material file")
    for library in libraries:
        material = os.path.join(folder, library)
        _check_files(material, os.path.dirname(material), _values(material, b"map_Kd"), "the texture")


def _values(path: str, keyword: bytes) -> List[str]:
    """What stands behind the keyword in each line that begins with it; of options and a name, the name."""
    with open(path, "rb") as file:
        lines = [line.strip().split(None, 1) for line in file if line.lstrip().startswith(keyword)]
    values = [line[1].decode("utf-8", "replace").strip() for line in lines if len(line) == 2]
    return [value.split()[-1] if value.startswith("-") else value for value in values]


def _check_files(path: str, folder: str, names: List[str], what: str) -> None:
    for name in names:
        if not os.path.isfile(os.path.join(folder, name)):
            raise UserError(f"{path} names {what} {name}, which is not there")
