"""Pictures with known cameras: of the world's objects, or from a folder with a transforms.json."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from threestudio.utils import picture_files
from torch import Tensor

from ..world.cameras import orbit_c2w
from ..world.captions import ObjectSpec
from ..world.render import composite, role_colors, shaded_coverage, surface_view

SUPERSAMPLE = 4  # rays along a pixel's side in renders of the world
GOLDEN_ANGLE = 180.0 * (3.0 - math.sqrt(5.0))  # degrees


@dataclass(frozen=True)
class PosedViews:
    """V square pictures and the cameras that took them."""

    c2w: Tensor  # [V, 4, 4], OpenGL axes
    fovy: Tensor  # [V], radians
    rgb: Tensor  # [V, S, S, 3] in [0, 1], multiplied by the coverage
    coverage: Tensor  # [V, S, S, 1] in [0, 1]

    def __len__(self) -> int:
        return len(self.c2w)

    def on(self, background: Tensor) -> Tensor:  # [V, 3] -> [V, S, S, 3]
        """The pictures over plain colours."""
        return self.rgb + (1.0 - self.coverage) * background[:, None, None, :]

    def __getitem__(self, index: Tensor | list[int]) -> PosedViews:
        return PosedViews(self.c2w[index], self.fovy[index], self.rgb[index], self.coverage[index])


def spiral_c2w(count: int, elevation_range: tuple[float, float], distance: float, turn: float = 0.0) -> Tensor:
    """Cameras spread evenly over a zone of the sphere, looking at its centre: -> [count, 4, 4].

    A Fibonacci spiral: equal steps of height, and the golden angle between one and the next.
    elevation_range in degrees, `turn` (degrees) turns the whole spiral, distance in world units.
    """
    low, high = (math.sin(math.radians(angle)) for angle in elevation_range)
    steps = torch.arange(count, dtype=torch.float32)
    elevation = torch.rad2deg(torch.asin(low + (high - low) * (steps + 0.5) / count))
    return orbit_c2w(elevation, turn + steps * GOLDEN_ANGLE, torch.full((count,), float(distance)))


def world_views(spec: ObjectSpec, c2w: Tensor, fovy: float, size: int) -> PosedViews:
    """Exact pictures of one of the world's objects: c2w [V, 4, 4], fovy in radians, size in pixels."""
    fovys = torch.full((len(c2w),), fovy)
    layers = []
    for start in range(0, len(c2w), 8):  # bounds the memory of the supersampled rays
        one = slice(start, start + 8)
        surface = surface_view(spec.shape, c2w[one], fovys[one], size * SUPERSAMPLE, size * SUPERSAMPLE)
        layers.append(shaded_coverage(surface, SUPERSAMPLE))
    layers = torch.cat(layers)
    colors = role_colors(spec.main, spec.accent).expand(len(c2w), -1, -1)
    rgb = composite(layers, colors, torch.zeros(len(c2w), 3))  # on black: multiplied by the coverage
    return PosedViews(c2w, fovys, rgb.permute(0, 2, 3, 1), layers[:, 3:].permute(0, 2, 3, 1))


def folder_views(file: Path | str, size: int) -> PosedViews:
    """The views of a transforms.json (camera_angle_x, frames with file_path and transform_matrix), resized to `size`.

    The layout is that of the NeRF synthetic scenes (Mildenhall et al. 2020): c2w matrices with OpenGL axes, z up;
    pictures are square, a missing alpha channel counts as full coverage.
    Raises FileNotFoundError or ValueError with the file that is missing or wrong.
    """
    cameras = read_camera_file(file)
    pictures = torch.cat([read_picture(path, size) for path in cameras.pictures])
    fovy = torch.full((len(pictures),), cameras.fovy)
    return PosedViews(cameras.c2w, fovy, pictures[..., :3] * pictures[..., 3:], pictures[..., 3:])


@dataclass(frozen=True)
class CameraFile:
    """What a transforms.json says."""

    c2w: Tensor  # [V, 4, 4], OpenGL axes
    fovy: float  # radians, of all
    pictures: list[Path]  # V


def read_camera_file(file: Path | str) -> CameraFile:
    """A transforms.json, without its pictures.

    Raises FileNotFoundError or ValueError with the file that is missing or wrong.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"no camera file at {file}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        angle, frames = float(content["camera_angle_x"]), list(content["frames"])
        c2w = torch.tensor([frame["transform_matrix"] for frame in frames], dtype=torch.float32)
        paths = [file.parent / frame["file_path"] for frame in frames]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: expected camera_angle_x and frames with file_path and transform_matrix ({error!r})") from error
    if not frames or c2w.shape[1:] != (4, 4) or not bool(torch.isfinite(c2w).all()):
        raise ValueError(f"{file}: expected frames with finite 4 x 4 matrices, got {len(frames)} of {list(c2w.shape[1:])}")
    # Pictures are square, so the vertical angle is the horizontal one.
    return CameraFile(c2w, angle, [path if path.suffix else path.with_suffix(".png") for path in paths])


def read_picture(path: Path, size: int) -> Tensor:
    """A square picture resized to `size`, with straight alpha: [1, size, size, 4] in [0, 1]; no alpha is full coverage.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no whole square picture; the message names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no picture at {path}")
    pixels, _ = picture_files.read_picture(path, "pictures")
    if pixels.shape[0] != pixels.shape[1]:
        raise ValueError(f"{path}: expected a square picture, got {pixels.shape[1]} x {pixels.shape[0]}")
    return picture_files.resized(pixels, size, size)[None]
