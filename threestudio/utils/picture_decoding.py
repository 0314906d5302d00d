"""What every reader of pictures shares: greys of more than 8 bits, and why a file is not read."""

from __future__ import annotations

import numpy as np
from PIL import Image

from threestudio.utils.errors import one_line

# What a decoder of Pillow raises for a broken file; SyntaxError is that of PNG.
DECODING_ERRORS = (OSError, SyntaxError, EOFError, ValueError, Image.DecompressionBombError)
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def deep_grey(image: Image.Image) -> np.ndarray | None:
    """Grey and alpha [H, W, 2] in [0, 1] of a picture of 16 bits, or of floats, which count to 1; None of others.

    Pillow itself would cut these to 8 bits from below, to white or to black. What is not finite is 0.
    """
    if image.mode == "F":
        grey = np.nan_to_num(np.asarray(image, np.float32), nan=0.0)
    elif image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.float32) / 65535.0
    else:
        return None
    clear = image.info.get("transparency")  # the one grey that stands for transparency
    values = np.asarray(image)
    alpha = np.where(values == clear, 0.0, 1.0) if isinstance(clear, int) else np.ones(values.shape)
    return np.stack([grey.clip(0.0, 1.0), alpha], -1).astype(np.float32)


def reason_unread(error: Exception, content: bytes) -> str:
    """Why a file's content, of which the first 32 bytes are enough, is no picture, in a few words."""
    if not isinstance(error, Image.UnidentifiedImageError):
        return one_line(error)
    if not content:
        return "the file is empty"
    if content[4:8] == b"ftyp" and content[8:12] in _HEIF_BRANDS:
        return "it is HEIC, which is not read; save it as PNG or JPEG"
    if content.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; git lfs pull fetches the picture"
    return "it is of no kind that is read (PNG, JPEG, WebP, TIFF and others of Pillow's)"


def first_bytes(path: object) -> bytes:
    with open(str(path), "rb") as file:
        return file.read(32)
