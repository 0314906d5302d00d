"""PLY files of points and of 3D Gaussians.

The Gaussians' layout is the one that viewers read: one binary little endian float32 vertex for each, with
x y z, nx ny nz, f_dc_0..2, f_rest_0.. (all of red, then green, then blue), opacity (logit), scale_0..2 (log),
rot_0..3 (wxyz).
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, NamedTuple, Optional, Union

import numpy as np
import torch
from torch import Tensor

from .parameters import Parameters
from .spherical_harmonics import MAX_DEGREE, sh_size, sh_to_rgb

PathLike = Union[str, Path]
_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1",
    "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}
_POSITION = ("x", "y", "z")
_GAUSSIAN = (
    "f_dc_0",
    "f_dc_1",
    "f_dc_2",
    "opacity",
    *(f"scale_{i}" for i in range(3)),
    *(f"rot_{i}" for i in range(4)),
)


class PlyVertices(NamedTuple):
    columns: Dict[str, np.ndarray]  # each [N]
    has_faces: bool


def read_ply_vertices(path: PathLike) -> PlyVertices:
    """The vertex element of a PLY file, ASCII or binary.

    Raises FileNotFoundError; ValueError, in one line with the path, for a file that is no PLY, is cut short or has
    lists among its vertex properties.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no PLY file at {path}")
    content = path.read_bytes()
    end = content.find(b"end_header")
    body_start = content.find(b"\n", end) + 1
    if not content.startswith(b"ply") or end < 0 or body_start == 0:
        raise ValueError(f"{path}: not a PLY file (no header)")
    form, elements = _parse_header(path, content[:end].decode("ascii", "replace"))
    if form not in _BYTE_ORDERS:
        raise ValueError(f"{path}: unknown PLY format {form!r}, expected one of {', '.join(_BYTE_ORDERS)}")
    if not elements or elements[0][0] != "vertex":
        raise ValueError(
            f"{path}: expected a PLY file that begins with its vertices, got {[name for name, _, _ in elements]}"
        )
    _, count, properties = elements[0]
    if any(kind not in _TYPES for _, kind in properties):
        raise ValueError(
            f"{path}: vertex properties of unknown type or lists: {[k for _, k in properties if k not in _TYPES]}"
        )
    columns = _read_table(path, content[body_start:], form, count, properties)
    return PlyVertices(columns, any(name == "face" and n > 0 for name, n, _ in elements))


def _parse_header(path: Path, header: str) -> tuple[str, list]:
    """(format, [(element, count, [(property, type)])])"""
    form, elements = "", []
    try:
        for line in header.splitlines()[1:]:
            words = line.split()
            if words[:1] == ["format"]:
                form = words[1]
            elif words[:1] == ["element"]:
                elements.append((words[1], int(words[2]), []))
            elif words[:1] == ["property"]:
                elements[-1][2].append((words[-1], words[1]))
    except (IndexError, ValueError) as error:
        raise ValueError(f"{path}: broken PLY header at {line!r}") from error
    return form, elements


def _read_table(path: Path, body: bytes, form: str, count: int, properties: list) -> Dict[str, np.ndarray]:
    """Columns [count] of the first element."""
    names = [name for name, _ in properties]
    if form != "ascii":
        dtype = np.dtype([(name, _BYTE_ORDERS[form] + _TYPES[kind]) for name, kind in properties])
        needed = count * dtype.itemsize
        if len(body) < needed:
            raise ValueError(f"{path}: cut short, {count} vertices need {needed} bytes, the file has {len(body)}")
        table = np.frombuffer(body, dtype, count)
        return {name: table[name].copy() for name in names}
    rows = [row.split() for row in body.decode("ascii", "replace").splitlines()[:count]]
    if len(rows) < count or any(len(row) != len(names) for row in rows):
        raise ValueError(f"{path}: cut short or broken, expected {count} lines of {len(names)} numbers")
    try:
        table = np.array(rows, np.float64).reshape(count, len(names))
    except ValueError as error:
        raise ValueError(f"{path}: a vertex is not made of numbers ({error})") from error
    return {name: table[:, i].astype(_TYPES[kind]) for i, (name, kind) in enumerate(properties)}


def _columns(path: PathLike, columns: Dict[str, np.ndarray], names: tuple, wanted_for: str) -> np.ndarray:
    """[N, len(names)] float32"""
    missing = [name for name in names if name not in columns]
    if missing:
        raise ValueError(
            f"{path}: {wanted_for} need the columns {', '.join(missing)}; the file has {', '.join(columns)}"
        )
    table = np.stack([columns[name] for name in names], 1).astype(np.float32)
    if not np.isfinite(table).all():
        raise ValueError(f"{path}: a value among {', '.join(names)} is not finite")
    return table


def is_gaussian_ply(columns: Dict[str, np.ndarray]) -> bool:
    return "f_dc_0" in columns or "opacity" in columns and "rot_0" in columns


def points_of(path: PathLike, columns: Dict[str, np.ndarray]) -> tuple[Tensor, Optional[Tensor]]:
    """Points [N, 3] and, where the file has red, green and blue or f_dc_0..2, colours [N, 3] in [0, 1]."""
    points = torch.from_numpy(_columns(path, columns, _POSITION, "points"))
    if len(points) == 0:
        raise ValueError(f"{path}: has no points")
    if "f_dc_0" in columns:
        return points, sh_to_rgb(torch.from_numpy(_columns(path, columns, _GAUSSIAN[:3], "colours"))).clamp(0, 1)
    if "red" not in columns:
        return points, None
    colors = torch.from_numpy(_columns(path, columns, ("red", "green", "blue"), "colours"))
    kind = columns["red"].dtype
    largest = float(np.iinfo(kind).max) if kind.kind in "iu" else 1.0
    return points, (colors / largest).clamp(0, 1)


def read_3dgs_ply(path: PathLike) -> Parameters:
    """Raw parameters of a PLY file's Gaussians, with all its degrees of harmonics. Raises as read_ply_vertices."""
    return gaussians_of(path, read_ply_vertices(path).columns)


def gaussians_of(path: PathLike, columns: Dict[str, np.ndarray]) -> Parameters:
    table = torch.from_numpy(_columns(path, columns, (*_POSITION, *_GAUSSIAN), "3D Gaussians"))
    if len(table) == 0:
        raise ValueError(f"{path}: has no Gaussians")
    means, dc, opacity, log_scales, quaternions = table.split([3, 3, 1, 3, 4], 1)
    if bool((quaternions.abs().amax(1) == 0).any()):
        raise ValueError(f"{path}: a rotation rot_0..3 has length 0")
    parameters = {
        "means": means.clone(),
        "log_scales": log_scales.clone(),
        "quaternions": quaternions.clone(),
        "opacity_logits": opacity[:, 0].clone(),
        "sh_dc": dc[:, None].clone(),
    }
    count = sum(name.startswith("f_rest_") for name in columns)
    if count:
        sizes = {3 * (sh_size(degree) - 1) for degree in range(1, MAX_DEGREE + 1)}
        if count not in sizes:
            raise ValueError(f"{path}: expected 0, 9, 24 or 45 columns f_rest_, got {count}")
        rest = torch.from_numpy(_columns(path, columns, tuple(f"f_rest_{i}" for i in range(count)), "harmonics"))
        parameters["sh_rest"] = rest.reshape(len(rest), 3, -1).transpose(1, 2).contiguous()
    return parameters


def write_3dgs_ply(path: PathLike, parameters: Parameters) -> None:
    """Writes raw parameters; normals are those of the parameters, or 0."""
    n = parameters["means"].shape[0]
    rest = parameters.get("sh_rest", parameters["means"].new_zeros(n, 0, 3)).transpose(1, 2).reshape(n, -1)
    parts = [
        parameters["means"],
        parameters.get("normals", torch.zeros_like(parameters["means"])),
        parameters["sh_dc"][:, 0],
        rest,
        parameters["opacity_logits"][:, None],
        parameters["log_scales"],
        parameters["quaternions"],
    ]
    names = (
        *_POSITION, "nx", "ny", "nz", *_GAUSSIAN[:3], *(f"f_rest_{i}" for i in range(rest.shape[1])), *_GAUSSIAN[3:],
    )  # fmt: skip
    table = torch.cat([part.detach().float().cpu() for part in parts], 1).numpy().astype("<f4")
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {n}"]
    header += [f"property float {name}" for name in names] + ["end_header", ""]
    Path(path).write_bytes("\n".join(header).encode("ascii") + table.tobytes())
