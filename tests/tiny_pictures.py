"""Small pictures of an object before a transparent background."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from threestudio.data.reference_views import orbit_camera

BALL_COLOR = (200, 60, 30)


def ball_pixels(side: int = 40, radius: float = 14.0, middle: tuple[float, float] = (20.0, 20.0)) -> np.ndarray:
    """A disc of one colour [side, side, 4], uint8; `middle` is its column and row, in pixels."""
    rows, columns = np.mgrid[:side, :side] + 0.5
    inside = (columns - middle[0]) ** 2 + (rows - middle[1]) ** 2 < radius**2
    pixels = np.zeros((side, side, 4), np.uint8)
    pixels[inside] = (*BALL_COLOR, 255)
    return pixels


def save_posed(folder: Path, pictures: list[np.ndarray], elevations: list[float], azimuths: list[float]) -> None:
    """Pictures [side, side, 4], uint8, with their cameras in zero-1-to-3's layout: 000.png, 000.npy and so on.

    The cameras look at the origin from a distance of 2.7; degrees.
    """
    for index, (pixels, elevation, azimuth) in enumerate(zip(pictures, elevations, azimuths)):
        c2w = orbit_camera(elevation, azimuth, 2.7)[0].double().numpy()
        turned = c2w[:3, :3].T
        np.save(folder / f"{index:03d}.npy", np.concatenate([turned, -turned @ c2w[:3, 3:]], axis=1))
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")


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
