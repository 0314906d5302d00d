"""Small pictures of an object before a transparent background."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

BALL_COLOR = (200, 60, 30)


def ball_pixels(side: int = 40, radius: float = 14.0, middle: tuple[float, float] = (20.0, 20.0)) -> np.ndarray:
    """A disc of one colour [side, side, 4], uint8; `middle` is its column and row, in pixels."""
    rows, columns = np.mgrid[:side, :side] + 0.5
    inside = (columns - middle[0]) ** 2 + (rows - middle[1]) ** 2 < radius**2
    pixels = np.zeros((side, side, 4), np.uint8)
    pixels[inside] = (*BALL_COLOR, 255)
    return pixels


@pytest.fixture(scope="session")
def ball_picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ball as RGBA, 40 pixels wide, and its depth and normal maps beside it."""
    path = tmp_path_factory.mktemp("pictures") / "ball_rgba.png"
    pixels = ball_pixels()
    Image.fromarray(pixels).save(path)
    depth = np.where(pixels[..., 3] > 0, 90 + np.arange(40, dtype=np.uint8)[None, :], 0).astype(np.uint8)
    Image.fromarray(depth).save(path.with_name("ball_depth.png"))
    facing = np.where(pixels[..., 3:] > 0, np.uint8([[[0, 128, 128]]]), 128).astype(np.uint8)  # normals along +x
    Image.fromarray(facing).save(path.with_name("ball_normal.png"))
    return path
