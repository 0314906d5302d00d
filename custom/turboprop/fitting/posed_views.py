"""Pictures with known cameras: of the world's objects, or from a folder with a transforms.json."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import threestudio
from threestudio.utils.errors import MissingFileError, UserError

from ..world.cameras import orbit_c2w
from ..world.captions import ObjectSpec
from ..world.render import composite, role_colors, shaded_coverage, surface_view
from .transforms_file import pinhole, read_frames

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
    """The views of a transforms.json (see `transforms_file`), cut to squares and resized to `size`.

    World axes: z up. A picture is cut to the largest square around its principal point, so that the camera looks
    through its middle; a missing alpha channel counts as full coverage.
    Raises MissingFileError or UserError with the file that is missing or wrong.
    """
    frames = read_frames(file)
    pictures, tangents, cut = [], [], None
    for frame in frames:
        pixels, width, height = _pixels(frame.path)
        camera = pinhole(frame, width, height)
        factors = (pixels.shape[1] / width, pixels.shape[0] / height) * 2
        pictures.append(_resized(pixels, size, tuple(a * b for a, b in zip(camera.square(), factors, strict=True))))
        tangents.append(camera.half_angle())
        left, top, right, bottom = camera.square()
        if cut is None and max(left, top, camera.width - right, camera.height - bottom) > 1.0:  # pixels
            kept = f"{right - left:.4g} x {bottom - top:.4g}"
            cut = f"pictures of {camera.width} x {camera.height} pixels are cut to {kept}"
    if cut is not None:
        threestudio.info(f"{file}: {cut}, the largest square around the principal point")
    if any("mask_path" in frame.camera for frame in frames):
        threestudio.warn(f"{file}: mask_path is not read; the alpha channel of pictures is their coverage")
    rgba = torch.cat(pictures)
    c2w = torch.stack([frame.c2w for frame in frames])
    return PosedViews(c2w, 2.0 * torch.tensor(tangents).atan(), rgba[..., :3] * rgba[..., 3:], rgba[..., 3:])


def read_picture(path: Path, size: int) -> Tensor:
    """A square picture resized to `size`, with straight alpha: [1, size, size, 4] in [0, 1]; no alpha is full coverage.

    Raises MissingFileError where there is no such file, UserError where it is no whole square picture.
    """
    if not path.is_file():
        raise MissingFileError(f"no picture at {path}")
    pixels, width, height = _pixels(path)
    if height != width:
        raise UserError(f"{path}: expected a square picture, got {width} x {height}")
    return _resized(pixels, size, (0.0, 0.0, pixels.shape[1], pixels.shape[0]))


def _pixels(path: Path) -> tuple[np.ndarray, int, int]:
    """[H, W, 4] in [0, 1], straight alpha, very large ones shrunk; and the width and height that the file has.

    Raises UserError that names the file.
    """
    from PIL import Image

    from threestudio.utils.picture_decoding import DECODING_ERRORS, first_bytes, reason_unread
    from threestudio.utils.picture_files import rgba_of_image

    try:
        with Image.open(path) as image:
            return rgba_of_image(image).numpy(), image.width, image.height
    except DECODING_ERRORS as error:
        raise UserError(f"{path}: not a whole picture ({reason_unread(error, first_bytes(path))})") from error


def _resized(
    pixels: np.ndarray,  # [H, W, 4], straight alpha
    size: int,
    box: tuple[float, float, float, float],  # left, top, right, bottom of the part that is kept, pixels
) -> Tensor:
    """[1, size, size, 4], straight alpha; pixels are averaged by their coverage."""
    from PIL import Image

    channels = np.concatenate([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], -1)
    planes = [Image.fromarray(np.ascontiguousarray(channels[..., c])) for c in range(4)]
    resized = [plane.resize((size, size), Image.BILINEAR, box) for plane in planes]
    small = torch.from_numpy(np.stack([np.asarray(channel) for channel in resized], -1))[None].clamp(0.0, 1.0)
    return torch.cat([small[..., :3] / small[..., 3:].clamp_min(1e-6), small[..., 3:]], -1)
