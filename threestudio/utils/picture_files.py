"""Pictures of objects from files: any format that Pillow knows, as RGBA that is upright and not too large."""

from __future__ import annotations

import os
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

from threestudio.utils.errors import UserError, first_line
from threestudio.utils.picture_decoding import DECODING_ERRORS, deep_grey, first_bytes, reason_unread

SMALLEST_SIDE = 8  # pixels; less than this shows no object
LARGEST_SIDE = 4096  # pixels; what is larger is shrunk, which bounds the memory
SMALLEST_OBJECT = 4  # pixels of an object's longer side; fewer show nothing of it
COVERED = 0.5  # alpha above which a pixel belongs to the object
MOST_OF_RIM = 0.75  # share of a picture's outermost pixels; where more are covered, its background is opaque
_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


def local_path(path: Path | str) -> Path:
    """A path that may begin with ~, the user's home, which a shell leaves alone behind `key=`."""
    return Path(os.path.expanduser(path))


def read_picture(path: Path | str, key: str) -> tuple[Tensor, bool]:
    """A picture [H, W, 4] in [0, 1], sRGB with straight alpha, and whether its alpha tells object and background apart.

    Turns it upright as its EXIF data say, and shrinks what is larger than LARGEST_SIDE. Of an animation it is the first
    picture. `key` is the config's key that named the file. Alpha that covers the picture's rim tells nothing: it covers
    the background too, or the background alone.
    Raises UserError, naming key and file, where there is no picture, or one that is broken or too large to decode.
    """
    path = local_path(path)
    if not path.is_file():
        raise UserError(f"{key}: no picture at {path}")
    with _broken_files_named(path, key), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # shrunk below
        image = Image.open(path)
    with _broken_files_named(path, key), image:
        image.draft(None, (LARGEST_SIDE, LARGEST_SIDE))  # JPEG: decodes a smaller picture right away
        pixels = rgba_of_image(ImageOps.exif_transpose(image))
    return pixels, _has_clear_rim(pixels[..., 3])


def _has_clear_rim(alpha: Tensor) -> bool:  # [H, W] in [0, 1]
    rim = torch.cat([alpha[0], alpha[-1], alpha[1:-1, 0], alpha[1:-1, -1]])
    return (rim > COVERED).float().mean().item() <= MOST_OF_RIM


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

    A picture whose alpha does not tell object and background apart goes through rembg, where that is installed.
    Raises UserError as `read_picture`; and where the picture is too small, where there is neither a transparent
    background nor rembg, and where there is no object.
    """
    rgba, has_clear_background = read_picture(path, key)
    height, width = rgba.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        raise UserError(
            f"{key}: {path} has {width} x {height} pixels; expected at least {SMALLEST_SIDE} x {SMALLEST_SIDE}"
        )
    if not has_clear_background:
        rgba = _without_background(rgba, path, key)
    _check_object(rgba[..., 3] > COVERED, path, key)
    return rgba


def _check_object(covered: Tensor, path: Path | str, key: str) -> None:  # [H, W], bool
    rows, columns = covered.nonzero(as_tuple=True)
    if rows.numel() == 0:
        raise UserError(f"{key}: the mask of {path} is empty: no pixel has an alpha above {COVERED}")
    height, width = (int(places.max() - places.min()) + 1 for places in (rows, columns))
    if max(height, width) < SMALLEST_OBJECT:
        raise UserError(
            f"{key}: the object in {path} has {width} x {height} pixels; expected at least {SMALLEST_OBJECT} along one "
            "side: cut the picture around it, or look at its alpha"
        )


def _without_background(rgba: Tensor, path: Path | str, key: str) -> Tensor:
    try:
        import rembg
    except (ImportError, SystemExit) as error:  # rembg itself exits where onnxruntime is missing
        found = "has no transparent background"
        if bool((rgba[..., 3] < 1).any()):
            found = "has no transparent background: its alpha covers the rim of the picture"
        raise UserError(
            f"{key}: {path} {found}; give a picture with an alpha channel that is 0 around the object, or install "
            "rembg, which removes backgrounds: pip install rembg onnxruntime"
        ) from error
    picture = Image.fromarray((rgba[..., :3] * 255.0).round().to(torch.uint8).numpy())
    try:
        cut_out: Any = rembg.remove(picture)
    except (OSError, RuntimeError, ValueError) as error:  # it fetches its network at the first call
        raise UserError(
            f"{key}: rembg did not remove the background of {path}: {first_line(error)}; give a picture with an alpha "
            "channel that is 0 around the object"
        ) from error
    return torch.from_numpy(np.array(cut_out.convert("RGBA"))).float() / 255.0


def read_map(path: Path | str, key: str, channels: int) -> Tensor:
    """A map of depths (1 channel) or normals (3) [H, W, channels] in [0, 1], as it stands in the file.

    Raises UserError as `read_picture`.
    """
    return read_picture(path, key)[0][..., :channels]
