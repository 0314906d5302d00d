"""What every reader of a mesh format gives: triangles in the file's axes, with their colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from threestudio.utils.mesh_reading.surface_colors import Texture

GREY = 0.5  # of what has no colour, beside what has one
OVERSHOOT = 2.0  # up to here colours with fractions are in [0, 1] and exceed it


@dataclass
class MeshPart:
    """Triangles that share a texture, or have none."""

    corners: np.ndarray  # [F, 3, 3] positions, counter-clockwise seen from outside
    rgb: np.ndarray | None = None  # [F, 3, 3] sRGB in [0, 1], multiplies the texture; None: the file says none
    uv: np.ndarray | None = None  # [F, 3, 2], v down as in images; with a texture
    texture: Texture | None = None
    # [F, 3, 2], v down: the file's own first set, without a texture's transform; None or NaN where it has none
    layout: np.ndarray | None = None

    @property
    def colored(self) -> bool:
        return self.rgb is not None or self.texture is not None


def unit_colors(values: np.ndarray) -> np.ndarray:
    """Colours [N, C] as files have them -> [N, 3] in [0, 1].

    Integers of 8 and 16 bits are shares of their largest. Wider integers, and floats that exceed 1, count to 255;
    fractions that exceed 1 a little, as filters leave them, count to 1. What is not finite is NaN.
    """
    values = np.asarray(values)[:, :3]
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        scale = float(np.iinfo(values.dtype).max)
    elif values.dtype.kind in "iu":
        scale = 255.0
    else:
        finite = values[np.isfinite(values)]
        largest = float(finite.max()) if finite.size else 0.0
        overshoots = largest <= OVERSHOOT and bool((finite != np.rint(finite)).any())
        scale = 1.0 if largest <= 1.0 or overshoots else 255.0
    return np.where(np.isfinite(values), (values / scale).clip(0.0, 1.0), np.nan)


def all_white(rgb: np.ndarray) -> bool:  # [..., 3] in [0, 1]
    """Whether colours are what programs write where nobody chose any."""
    return bool((rgb >= 1.0 - 0.5 / 255.0).all())
