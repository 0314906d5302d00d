"""Compressed PLY files of 3D Gaussians, as SuperSplat and splat-transform write them: 16 bytes for each.

256 Gaussians make a chunk, which has the least and largest value of each of their numbers; a Gaussian has its share
between them, packed into 32 bits: places and scales with 11, 10 and 11 bits, rotations as the three smaller of four
components with 10 bits each, colours and opacity with 8 bits each (the layout that PlayCanvas' engine reads,
src/scene/gsplat/gsplat-compressed-data.js). Harmonics of degree 1 and up are bytes of an element of their own.
"""

from __future__ import annotations

import numpy as np
import torch

from threestudio.utils.errors import UserError
from threestudio.utils.mesh_reading.ply_tables import Table

from .parameters import LARGEST_LOGIT
from .spherical_harmonics import rgb_to_sh

PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
CHUNK_SIZE = 256


def is_compressed(names: list[str]) -> bool:
    """Whether these are the columns of packed vertices."""
    return "packed_position" in names


def decompressed(path: str, tables: dict[str, Table]) -> dict[str, np.ndarray]:
    """The columns [N] of a plain 3D Gaussian PLY, of the elements chunk, vertex and sh. Raises UserError."""
    vertex, chunk = tables["vertex"], tables.get("chunk", {})
    limits = ("x", "y", "z", "scale_x", "scale_y", "scale_z")
    needed = [f"{end}_{name}" for name in limits for end in ("min", "max")]
    missing = [name for name in PACKED if name not in vertex] + [name for name in needed if name not in chunk]
    if missing:
        raise UserError(f"{path}: compressed 3D Gaussians need the columns {', '.join(missing)}")
    count, n_chunks = len(vertex[PACKED[0]]), len(chunk[needed[0]])
    if n_chunks * CHUNK_SIZE < count:
        needed_chunks = -(-count // CHUNK_SIZE)
        raise UserError(f"{path}: {count} compressed 3D Gaussians need {needed_chunks} chunks, got {n_chunks}")
    of = np.arange(count) // CHUNK_SIZE
    columns: dict[str, np.ndarray] = {}
    for packed, names, targets in (
        ("packed_position", limits[:3], ("x", "y", "z")),
        ("packed_scale", limits[3:], ("scale_0", "scale_1", "scale_2")),
    ):
        for share, name, target in zip(_three_shares(vertex[packed]), names, targets):
            columns[target] = _between(chunk, name, of, share)
    quaternions = _rotations(vertex["packed_rotation"])
    columns.update({f"rot_{i}": quaternions[:, i] for i in range(4)})
    columns.update(_colors(vertex["packed_color"], chunk, of))
    columns.update(_harmonics(tables.get("sh", {}), count, path))
    return columns


def _share(packed: np.ndarray, shift: int, bits: int) -> np.ndarray:  # [N] in [0, 1]
    largest = (1 << bits) - 1
    return ((packed.astype(np.int64) >> shift) & largest) / largest


def _three_shares(packed: np.ndarray) -> tuple[np.ndarray, ...]:
    return _share(packed, 21, 11), _share(packed, 11, 10), _share(packed, 0, 11)


def _between(chunk: Table, name: str, of: np.ndarray, share: np.ndarray) -> np.ndarray:  # [N]
    """The value that lies at its share between a chunk's least and largest."""
    low, high = (chunk[f"{end}_{name}"].astype(np.float64)[of] for end in ("min", "max"))
    return low + share * (high - low)


def _rotations(packed: np.ndarray) -> np.ndarray:
    """Unit quaternions [N, 4], wxyz: the two highest bits say which component is the largest, and left out."""
    smaller = np.stack([_share(packed, shift, 10) for shift in (20, 10, 0)], 1)
    smaller = (smaller - 0.5) * np.sqrt(2.0)  # no component but the largest exceeds 1 / sqrt(2)
    left_out = packed.astype(np.int64) >> 30
    quaternions = np.zeros((len(packed), 4))
    for largest in range(4):
        rows = left_out == largest
        others = [i for i in range(4) if i != largest]
        quaternions[np.ix_(rows, others)] = smaller[rows]
        quaternions[rows, largest] = np.sqrt(np.clip(1.0 - (smaller[rows] ** 2).sum(1), 0.0, None))
    return quaternions


def _colors(packed: np.ndarray, chunk: Table, of: np.ndarray) -> dict[str, np.ndarray]:
    """f_dc_0..2 and opacity, a logit; files of newer writers have the colours' limits too."""
    columns = {}
    for i, name in enumerate("rgb"):
        color = _share(packed, 24 - 8 * i, 8)
        if f"min_{name}" in chunk:
            color = _between(chunk, name, of, color)
        columns[f"f_dc_{i}"] = rgb_to_sh(torch.from_numpy(color)).numpy()
    alpha = _share(packed, 0, 8)
    with np.errstate(divide="ignore"):
        columns["opacity"] = (np.log(alpha) - np.log1p(-alpha)).clip(-LARGEST_LOGIT, LARGEST_LOGIT)
    return columns


def _harmonics(table: Table, count: int, path: str) -> dict[str, np.ndarray]:
    """f_rest_.. from bytes, from -4 to 4."""
    columns = {}
    for name, values in table.items():
        if not isinstance(values, np.ndarray) or len(values) != count:
            raise UserError(f"{path}: the element sh: expected {count} rows of bytes, got {len(values)}")
        columns[name] = values * (8.0 / 255.0) - 4.0
    return columns
