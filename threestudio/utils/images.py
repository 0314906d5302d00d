"""Tensors and arrays to 8-bit RGB pictures, and grids of them."""

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

Align = str | int | tuple[int, int]


def to_numpy(data: Any) -> Any:
    """`data` with every tensor in it as an array on the CPU; lists, tuples and dicts are kept."""
    if data is None or isinstance(data, (np.ndarray, int, float, str)):
        return data
    if isinstance(data, torch.Tensor):
        data = data.detach().cpu()
        return data.float().numpy() if data.dtype == torch.bfloat16 else data.numpy()
    if isinstance(data, dict):
        return {key: to_numpy(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [to_numpy(value) for value in data]
    raise TypeError(f"expected tensors, arrays, numbers or containers of them; got {type(data)}")


def _normalized(image: np.ndarray, data_range: tuple[float, float]) -> np.ndarray:
    low, high = data_range
    if high <= low:
        return np.zeros_like(image, dtype=np.float32)
    return ((image.astype(np.float32) - low) / (high - low)).clip(0.0, 1.0)


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return (np.nan_to_num(image) * 255.0).round().astype(np.uint8)


def rgb_image(
    image: Any,  # [H, W, 1 | 3 | 4] or channels first, as data_format says
    data_format: str = "HWC",
    data_range: tuple[float, float] = (0.0, 1.0),
) -> np.ndarray:  # [H, W, 3], uint8
    """A colour picture; one channel is grey, and what stands after the third is left out."""
    image = to_numpy(image)
    if data_format not in ("HWC", "CHW"):
        raise ValueError(f"data_format is 'HWC' or 'CHW'; got '{data_format}'")
    if image.ndim != 3:
        raise ValueError(f"a colour image has 3 dimensions; got shape {image.shape}")
    if data_format == "CHW":
        image = image.transpose(1, 2, 0)
    if image.dtype == np.uint8:
        image, data_range = image.astype(np.float32) / 255.0, (0.0, 1.0)
    channels = image.shape[-1]
    if channels == 1:
        image = image.repeat(3, axis=-1)
    elif channels == 2:
        image = np.concatenate([image, np.zeros_like(image[..., :1])], axis=-1)
    return _to_uint8(_normalized(image[..., :3], data_range))


def uv_image(
    image: Any,  # [H, W, 2]
    data_format: str = "HWC",
    data_range: tuple[float, float] = (0.0, 1.0),
    cmap: str = "checkerboard",
) -> np.ndarray:  # [H, W, 3], uint8
    """Texture coordinates as a checkerboard of 64 squares a side, or as red and green."""
    uv = to_numpy(image)
    if data_format == "CHW":
        uv = uv.transpose(1, 2, 0)
    uv = _normalized(uv, data_range)
    if cmap == "color":
        return _to_uint8(np.concatenate([uv, np.zeros_like(uv[..., :1])], axis=-1))
    if cmap != "checkerboard":
        raise ValueError(f"cmap is 'checkerboard' or 'color'; got '{cmap}'")
    squares = (uv * 64).astype(np.int64)
    dark = (squares.sum(axis=-1, keepdims=True) % 2 == 0) & (uv.sum(axis=-1, keepdims=True) > 0)
    return np.where(dark, np.uint8(0), np.uint8(255)).repeat(3, axis=-1)


def grayscale_image(
    image: Any,  # [H, W]
    data_range: tuple[float, float] | None = None,
    cmap: str | None = "jet",
) -> np.ndarray:  # [H, W, 3], uint8
    """A map of one value a pixel in the colours of a matplotlib colour map, or in greys."""
    image = np.nan_to_num(to_numpy(image).astype(np.float32))
    if image.ndim != 2:
        raise ValueError(f"a grayscale image has 2 dimensions; got shape {image.shape}")
    if data_range is None:
        data_range = (float(image.min()), float(image.max()))
    value = _normalized(image, data_range)
    if cmap is None:
        return _to_uint8(value[..., None].repeat(3, axis=-1))
    from matplotlib import colormaps

    name = {"spectral": "Spectral"}.get(cmap, cmap)
    return _to_uint8(colormaps[name](value)[..., :3])


_KINDS = {"rgb": rgb_image, "uv": uv_image, "grayscale": grayscale_image}


def _cell(spec: dict) -> np.ndarray:
    if spec["type"] not in _KINDS:
        raise ValueError(f"image type is one of {', '.join(_KINDS)}; got '{spec['type']}'")
    return _KINDS[spec["type"]](spec["img"], **(spec.get("kwargs") or {}))


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.BILINEAR))


def _cell_size(cells: list[np.ndarray], align: Align) -> tuple[int, int]:
    heights, widths = [c.shape[0] for c in cells], [c.shape[1] for c in cells]
    if align == "max":
        return max(heights), max(widths)
    if align == "min":
        return min(heights), min(widths)
    if isinstance(align, int):
        return align, align
    if isinstance(align, (tuple, list)) and len(align) == 2:
        return align[0], align[1]
    raise ValueError(f"align is 'max', 'min', a size, or (height, width); got {align!r}")


def image_grid(
    imgs: list,  # a row of {"type", "img", "kwargs"}, or a list of rows
    align: Align = "max",
    texts: list[str] | None = None,  # lines written into the upper left corner
) -> np.ndarray:  # [H, W, 3], uint8
    """Pictures side by side, all resized to one size."""
    rows = [imgs] if isinstance(imgs[0], dict) else imgs
    cells = [[_cell(spec) for spec in row] for row in rows]
    height, width = _cell_size([c for row in cells for c in row], align)
    columns = max(len(row) for row in cells)
    grid = np.zeros((height * len(cells), width * columns, 3), dtype=np.uint8)
    for r, row in enumerate(cells):
        for c, cell in enumerate(row):
            grid[r * height : (r + 1) * height, c * width : (c + 1) * width] = _resized(cell, height, width)
    if texts is None:
        return grid
    picture = Image.fromarray(grid)
    draw = ImageDraw.Draw(picture)
    draw.multiline_text((4, 4), "\n".join(texts), fill="white", stroke_width=1, stroke_fill="black")
    return np.asarray(picture)


def cubemap_image(
    image: Any,  # [6, H, W, C]
    data_range: tuple[float, float] = (0.0, 1.0),
) -> np.ndarray:  # [H, 6 W, 3], uint8
    """The six faces of a cube map in a row."""
    return np.concatenate([rgb_image(face, "HWC", data_range) for face in to_numpy(image)], axis=1)


def srgb_to_linear(color: np.ndarray) -> np.ndarray:
    """Inverse sRGB transfer function (IEC 61966-2-1) on [0, 1]."""
    color = np.clip(color, 0.0, 1.0)
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(color: np.ndarray) -> np.ndarray:
    """sRGB transfer function (IEC 61966-2-1) on [0, 1]."""
    color = np.clip(color, 0.0, 1.0)
    return np.where(color <= 0.0031308, color * 12.92, 1.055 * color ** (1 / 2.4) - 0.055)
