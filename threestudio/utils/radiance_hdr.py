"""Radiance pictures (.hdr, .pic): colours without an upper bound, as panoramas of light come in.

The format is Ward's (Real Pixels, Graphics Gems II, 1991; the manual pages of Radiance): a text header, a line of the
picture's size, and rows of four bytes a pixel, three mantissas and their exponent, mostly run-length coded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threestudio.utils.errors import UserError

_WIDTHS_WITH_RUNS = range(8, 32768)
_LARGEST = 2**28  # pixels; a broken header must not ask for all of a machine's memory


def read_hdr(path: Path | str, key: str) -> Tensor:
    """The picture's colours [H, W, 3], float32, at least 0, top row first.

    Raises:
        UserError: with `key`, where the file is not there, is none, is cut short, or has rows in another order.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{key}: {path}: {error.strerror}") from error
    try:
        height, width, start = _header(data)
        pixels, at = np.empty((height, width, 4), np.uint8), start
        for row in range(height):
            at = _read_row(data, at, pixels[row])
    except (ValueError, IndexError) as error:
        raise UserError(f"{key}: {path} is not a whole Radiance picture: {error}") from error
    mantissas, exponents = pixels[..., :3].astype(np.float32), pixels[..., 3:].astype(np.int32)
    return torch.from_numpy(np.where(exponents > 0, np.ldexp(mantissas, exponents - 136), 0.0).astype(np.float32))


def _header(data: bytes) -> tuple[int, int, int]:
    """Height, width, and where the rows begin."""
    if not data.startswith(b"#?"):
        raise ValueError("it does not begin with #?")
    end = data.find(b"\n\n")
    if end < 0:
        raise ValueError("its header has no end")
    if b"FORMAT=32-bit_rle_xyze" in data[:end]:
        raise ValueError("its colours are XYZ, expected RGB")
    stop = data.find(b"\n", end + 2)
    words = data[end + 2 : max(stop, 0)].split()
    if len(words) != 4 or words[0] != b"-Y" or words[2] != b"+X":
        raise ValueError("expected rows from the top and from the left, -Y height +X width")
    height, width = int(words[1]), int(words[3])
    if height < 1 or width < 1 or height * width > _LARGEST:
        raise ValueError(f"its size is {height} x {width}")
    return height, width, stop + 1


def _read_row(data: bytes, at: int, row: np.ndarray) -> int:  # row [W, 4], written to -> where the next row begins
    width = len(row)
    coded = width in _WIDTHS_WITH_RUNS and data[at : at + 4] == bytes((2, 2, width >> 8, width & 255))
    if not coded:
        plain = np.frombuffer(data[at : at + 4 * width], np.uint8)
        if len(plain) != 4 * width:
            raise ValueError("it is cut short")
        row[:] = plain.reshape(width, 4)
        if (row[:, :3] == 1).all(1).any():
            raise ValueError("its rows are coded in the way of before 1991")
        return at + 4 * width
    at += 4
    for channel in range(4):
        x = 0
        while x < width:
            count = data[at]
            run = count > 128
            length = count - 128 if run else count
            values = data[at + 1 : at + 2] if run else data[at + 1 : at + 1 + length]
            if length == 0 or x + length > width or len(values) != (1 if run else length):
                raise ValueError("a run of pixels is broken or cut short")
            row[x : x + length, channel] = np.frombuffer(values, np.uint8)
            x, at = x + length, at + 1 + len(values)
    return at
