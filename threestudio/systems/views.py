"""What systems show of a render: the cells of a row of pictures."""

from collections.abc import Iterable
from typing import Any

_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "comp_rgb": ("rgb", {"data_format": "HWC"}),
    "decoded_rgb": ("rgb", {"data_format": "HWC"}),
    "comp_normal": ("rgb", {"data_format": "HWC", "data_range": (0, 1)}),
    "depth": ("grayscale", {}),
    "opacity": ("grayscale", {"cmap": None, "data_range": (0, 1)}),
}
DEFAULT_VIEWS = ("comp_rgb", "comp_normal", "opacity")


def view_cells(out: dict, names: Iterable[str] = DEFAULT_VIEWS) -> list[dict]:
    """Cells for `save_image_grid` of the first image of each of `names` that the render has."""
    cells = []
    for name in names:
        if name in out:
            kind, options = _KINDS[name]
            image = out[name][0] if kind == "rgb" else out[name][0, :, :, 0]
            cells.append({"type": kind, "img": image, "kwargs": dict(options)})
    return cells
