"""PLY files of points and of 3D Gaussians.

The Gaussians' layout is the one that viewers read: one binary little endian float32 vertex for each, with
x y z, nx ny nz, f_dc_0..2, f_rest_0.. (all of red, then green, then blue), opacity (logit), scale_0..2 (log),
rot_0..3 (wxyz). Compressed files (compressed_ply.py) give the same columns. Mip-Splatting's filter_3D, where a file has
it, is applied in reading.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import threestudio
from threestudio.utils.errors import UserError
from threestudio.utils.mesh_reading.part import unit_colors
from threestudio.utils.mesh_reading.ply_tables import read_ply_header, read_ply_tables

from .compressed_ply import decompressed, is_compressed
from .parameters import LARGEST_LOG_SCALE, LARGEST_LOGIT, LEAST_LOG_SCALE, Parameters
from .spherical_harmonics import MAX_DEGREE, sh_size, sh_to_rgb

PathLike = str | Path
FILTER = "filter_3D"  # a column of Mip-Splatting's files: what their viewers apply before they draw
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
    columns: dict[str, np.ndarray]  # each [N]
    has_faces: bool


def read_ply_vertices(path: PathLike) -> PlyVertices:
    """The vertices of a PLY file in text or bytes, wherever they stand in it; compressed Gaussians are unpacked.

    Raises UserError, in one line with the path, for a file that is missing, no PLY, cut short or without vertices.
    """
    path = str(path)
    if not os.path.isfile(path):
        raise UserError(f"no PLY file at {path}")
    header = read_ply_header(path)
    tables = read_ply_tables(path, header, ("chunk", "vertex", "sh"))
    if "vertex" not in tables:
        raise UserError(f"{path}: expected vertices, got {[element.name for element in header.elements]}")
    has_faces = header.rows("face") > 0 or header.rows("tristrips") > 0
    if is_compressed(header.names("vertex")):
        return PlyVertices(decompressed(path, tables), has_faces)
    return PlyVertices({n: c for n, c in tables["vertex"].items() if isinstance(c, np.ndarray)}, has_faces)


def holds_gaussians(path: PathLike) -> bool:
    """Whether a PLY file's header names the columns of 3D Gaussians, compressed or not, and no faces."""
    try:
        header = read_ply_header(str(path))
    except UserError:
        return False
    names = header.names("vertex")
    return (is_compressed(names) or is_gaussian_ply(names)) and header.rows("face") == 0


def is_gaussian_ply(names: dict[str, np.ndarray] | list) -> bool:
    """Whether vertices with these columns are 3D Gaussians."""
    return "f_dc_0" in names or "opacity" in names and "rot_0" in names


def _columns(path: PathLike, columns: dict[str, np.ndarray], names: tuple, wanted_for: str) -> np.ndarray:
    """[N, len(names)] float32, which may hold infinite numbers and such that are none."""
    missing = [name for name in names if name not in columns]
    if missing:
        lacking, there = ", ".join(missing), ", ".join(columns)
        raise UserError(f"{path}: {wanted_for} need the columns {lacking}; the file has {there}")
    with np.errstate(over="ignore"):
        return np.stack([columns[name] for name in names], 1).astype(np.float32)


def _check_finite(path: PathLike, table: np.ndarray, names: tuple) -> np.ndarray:  # [N, len(names)]
    """The table; UserError with the columns that have numbers which are not finite, and in how many rows."""
    broken = ~np.isfinite(table)
    if broken.any():
        counts = ", ".join(f"{name} in {n}" for name, n in zip(names, broken.sum(0)) if n)
        raise UserError(f"{path}: not finite: {counts} of {len(table)} rows")
    return table


def points_of(path: PathLike, columns: dict[str, np.ndarray]) -> tuple[Tensor, Tensor | None]:
    """Points [N, 3] and, where the file has red, green and blue or f_dc_0..2, colours [N, 3] in [0, 1]."""
    table = _check_finite(path, _columns(path, columns, _POSITION, "points"), _POSITION)
    points = torch.from_numpy(table)
    if len(points) == 0:
        raise UserError(f"{path}: has no points")
    if "f_dc_0" in columns:
        names = _GAUSSIAN[:3]
        harmonics = _check_finite(path, _columns(path, columns, names, "colours"), names)
        return points, sh_to_rgb(torch.from_numpy(harmonics)).clamp(0, 1)
    if "red" not in columns:
        return points, None
    names = ("red", "green", "blue")
    _check_finite(path, _columns(path, columns, names, "colours"), names)
    rgb = unit_colors(np.stack([columns[name] for name in names], 1))
    return points, torch.from_numpy(rgb.astype(np.float32))


def read_3dgs_ply(path: PathLike) -> Parameters:
    """Raw parameters of a PLY file's Gaussians, with all its degrees of harmonics. Raises as read_ply_vertices."""
    return gaussians_of(path, read_ply_vertices(path).columns)


def gaussians_of(path: PathLike, columns: dict[str, np.ndarray]) -> Parameters:
    """Raw parameters of Gaussians given by a file's columns.

    What a Gaussian may come near to but not be is replaced, with a warning that counts the rows: infinite opacities,
    scales of zero or beyond all bounds, rotations of length 0. Raises UserError for columns that are missing or not
    finite.
    """
    names = (*_POSITION, *_GAUSSIAN)
    table = _columns(path, columns, names, "3D Gaussians")
    if len(table) == 0:
        raise UserError(f"{path}: has no Gaussians")
    table = torch.from_numpy(_check_finite(path, _mended(path, table, names), names))
    means, dc, opacity, log_scales, quaternions = table.split([3, 3, 1, 3, 4], 1)
    logits = opacity[:, 0]
    if FILTER in columns:
        width = torch.from_numpy(_check_finite(path, _columns(path, columns, (FILTER,), "filters"), (FILTER,)))
        log_scales, logits = filtered(log_scales, logits, width)
    parameters = {
        "means": means.clone(),
        "log_scales": log_scales.clone(),
        "quaternions": quaternions.clone(),
        "opacity_logits": logits.clone(),
        "sh_dc": dc[:, None].clone(),
    }
    count = sum(name.startswith("f_rest_") for name in columns)
    if count:
        sizes = {3 * (sh_size(degree) - 1) for degree in range(1, MAX_DEGREE + 1)}
        if count not in sizes:
            raise UserError(f"{path}: expected 0, 9, 24 or 45 columns f_rest_, got {count}")
        rest_names = tuple(f"f_rest_{i}" for i in range(count))
        rest = torch.from_numpy(_check_finite(path, _columns(path, columns, rest_names, "harmonics"), rest_names))
        parameters["sh_rest"] = rest.reshape(len(rest), 3, -1).transpose(1, 2).contiguous()
    return parameters


def filtered(
    log_scales: Tensor,  # [N, 3]
    opacity_logits: Tensor,  # [N]
    width: Tensor,  # [N, 1], standard deviation of the filter, world units
) -> tuple[Tensor, Tensor]:  # [N, 3], [N]
    """Log scales and opacity logits of Gaussians behind Mip-Splatting's 3D smoothing filter.

    Each is convolved with a round Gaussian and keeps its integral (Yu et al. 2023, arXiv 2311.16493, equation 9).
    """
    before, opacity = log_scales.double(), opacity_logits.double().sigmoid()
    after = 0.5 * torch.log(torch.exp(2 * before) + width.double() ** 2)
    logits = torch.logit(opacity * torch.exp((before - after).sum(dim=1)))
    return after.float(), logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT).float()


def _mended(path: PathLike, table: np.ndarray, names: tuple) -> np.ndarray:
    """The table [N, len(names)] without infinite logits, scales of zero or too large, and rotations of length 0.

    Rotations whose length squared is no number of float32 get the length 1, which changes nothing.
    """
    opacity = table[:, [names.index("opacity")]]
    log_scales = table[:, [names.index(f"scale_{i}") for i in range(3)]]
    quaternions = table[:, [names.index(f"rot_{i}") for i in range(4)]].astype(np.float64)
    length = np.linalg.norm(quaternions, axis=1, keepdims=True)
    odd = (length > 0) & ((length < 1e-6) | (length > 1e6)) & np.isfinite(length)
    quaternions = np.where(odd, quaternions / np.where(odd, length, 1.0), quaternions)
    too_large = (log_scales > LARGEST_LOG_SCALE) & np.isfinite(log_scales)
    cases = {
        "opacity infinite": np.isinf(opacity).any(1),
        "scale_ minus infinity (flat)": np.isneginf(log_scales).any(1),
        f"scale_ beyond exp({LARGEST_LOG_SCALE:.1f})": too_large.any(1),
        "rot_ of length 0": (quaternions == 0).all(1),
    }
    found = [f"{name} in {rows.sum()}" for name, rows in cases.items() if rows.any()]
    if not found and not odd.any():
        return table
    if found:
        threestudio.warn(f"{path}: {', '.join(found)} of {len(table)} rows; replaced by what is nearest and finite")
    opacity = np.where(np.isinf(opacity), np.sign(opacity) * LARGEST_LOGIT, opacity)
    log_scales = np.where(np.isneginf(log_scales), LEAST_LOG_SCALE, log_scales)
    log_scales = np.where(too_large, LARGEST_LOG_SCALE, log_scales)
    quaternions = np.where((quaternions == 0).all(1, keepdims=True), [1.0, 0.0, 0.0, 0.0], quaternions)
    before = table[:, : names.index("opacity")]
    return np.concatenate([before, opacity, log_scales, quaternions], 1).astype(np.float32)


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
