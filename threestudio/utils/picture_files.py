"""Pictures of objects from files: any format that Pillow knows, as RGBA that is upright and not too large."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from threestudio.utils.errors import UserError
from threestudio.utils.picture_decoding import DECODING_ERRORS, deep_grey, first_bytes, reason_unread

SMALLEST_SIDE = 8  # pixels; less than this shows no object
LARGEST_SIDE = 4096  # pixels; what is larger is shrunk, which bounds the memory
COVERED = 0.5  # alpha above which a pixel belongs to the object
_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


def read_picture(path: Path | str, key: str) -> tuple[Tensor, bool]:
    """A picture [H, W, 4] in [0, 1], sRGB with straight alpha, and whether the file says what is transparent.

    Turns it upright as its EXIF data say, and shrinks what is larger than LARGEST_SIDE. `key` is the config's key that
    named the file. A picture whose alpha is 1 everywhere says nothing, as one without alpha.
    Raises UserError, naming key and file, where there is no picture, or one that is broken or too large to decode.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{key}: no picture at {path}")
    with _broken_files_named(path, key), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # shrunk below
        image = Image.open(path)
    with _broken_files_named(path, key):
        image.draft(None, (LARGEST_SIDE, LARGEST_SIDE))  # JPEG: decodes a smaller picture right away
        pixels = rgba_of_image(ImageOps.exif_transpose(image))
    return pixels, bool((pixels[..., 3] < 1).any())


@contextmanager
def _broken_files_named(path: Path, key: str) -> Iterator[None]:
    """Turns what Pillow raises for a broken file into a UserError of one line."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise UserError(f"{key}: {path} has too many pixels: {error}") from error
    except DECODING_ERRORS as error:
        reason = reason_unread(error, first_bytes(path))
        raise UserError(f"{key}: {path} is not a whole picture: {reason}") from error


def rgba_of_image(image: Image.Image) -> Tensor:
    """An opened picture as [H, W, 4] in [0, 1] with straight alpha, shrunk where it is larger than LARGEST_SIDE.

    Raises one of DECODING_ERRORS where the file is broken.
    """
    deep = deep_grey(image)
    if deep is not None:
        return resized(torch.from_numpy(deep)[..., [0, 0, 0, 1]], *_bounded(*deep.shape[:2]))
    if image.mode not in ("RGB", "L"):  # these are shrunk before they take four channels
        image = image.convert("RGBA" if image.mode in (*_WITH_ALPHA, "P") or _names_transparent(image) else "RGB")
    if not _names_transparent(image):
        image = _shrunk(image)
    return torch.from_numpy(np.array(_shrunk(image.convert("RGBA")))).float() / 255.0


def _names_transparent(image: Image.Image) -> bool:
    """Whether one colour of the picture stands for transparency."""
    return "transparency" in image.info


def _bounded(height: int, width: int) -> tuple[int, int]:
    factor = min(1.0, LARGEST_SIDE / max(height, width))
    return max(round(height * factor), 1), max(round(width * factor), 1)


def _shrunk(image: Image.Image) -> Image.Image:
    height, width = _bounded(image.height, image.width)
    return image if (width, height) == image.size else image.resize((width, height), Image.Resampling.BOX)


def resized(rgba: Tensor, height: int, width: int) -> Tensor:
    """A picture [H, W, 4] at another size, antialiased; what is transparent lends no colour to its neighbours."""
    if tuple(rgba.shape[:2]) == (height, width):
        return rgba
    premultiplied = torch.cat([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], dim=-1)
    small = resized_channels(premultiplied, height, width)
    return torch.cat([(small[..., :3] / small[..., 3:].clamp_min(1e-6)).clamp(0, 1), small[..., 3:]], dim=-1)


def resized_channels(image: Tensor, height: int, width: int) -> Tensor:
    """[H, W, C] -> [height, width, C], bilinear and antialiased, each channel by itself."""
    channels_first = image.permute(2, 0, 1)[None]
    small = F.interpolate(channels_first, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return small[0].permute(1, 2, 0)


def padded(image: Tensor, aspect: float) -> Tensor:
    """[H, W, C] with borders of 0 on two sides, so that width / height is `aspect` to within a pixel."""
    height, width, channels = image.shape
    new_width, new_height = max(round(height * aspect), width), max(round(width / aspect), height)
    left, top = (new_width - width) // 2, (new_height - height) // 2
    canvas = image.new_zeros(new_height, new_width, channels)
    canvas[top : top + height, left : left + width] = image
    return canvas


def read_object(path: Path | str, key: str) -> Tensor:
    """A picture [H, W, 4] of an object before a transparent background, in [0, 1] with straight alpha.

    A picture that does not say what is transparent goes through rembg, where that is installed.
    Raises UserError as `read_picture`; and where the picture is too small, where there is neither transparency nor
    rembg, and where there is no object.
    """
    rgba, says_what_is_transparent = read_picture(path, key)
    height, width = rgba.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        raise UserError(
            f"{key}: {path} has {width} x {height} pixels; expected at least {SMALLEST_SIDE} x {SMALLEST_SIDE}"
        )
    if not says_what_is_transparent:
        rgba = _without_background(rgba, path, key)
    if not bool((rgba[..., 3] > COVERED).any()):
        raise UserError(f"{key}: the mask of {path} is empty: no pixel has an alpha above {COVERED}")
    return rgba


def _without_background(rgba: Tensor, path: Path | str, key: str) -> Tensor:
    try:
        import rembg
    except ImportError as error:
        raise UserError(
            f"{key}: {path} has no transparent background; give a picture with an alpha channel that is 0 around the "
            "object, or install rembg, which removes backgrounds: pip install rembg onnxruntime"
        ) from error
    picture = Image.fromarray((rgba[..., :3] * 255.0).round().to(torch.uint8).numpy())
    cut_out: Any = rembg.remove(picture)
    return torch.from_numpy(np.array(cut_out.convert("RGBA"))).float() / 255.0


def read_map(path: Path | str, key: str, channels: int) -> Tensor:
    """A map of depths (1 channel) or normals (3) [H, W, channels] in [0, 1], as it stands in the file.

    Raises UserError as `read_picture`.
    """
    return read_picture(path, key)[0][..., :channels]
