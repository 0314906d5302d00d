"""How large an object stands in its picture, and in which place: brought to what novel-view models were trained with.

zero-1-to-3 was trained on objects that look at the camera from a distance at which they fill most of the frame, centred
(arXiv 2303.11328). A photo rarely is like that; a render of a model's own world is, and stays as it is: cropping it
would change the object's size in the scene.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from threestudio.utils.errors import UserError
from threestudio.utils.picture_files import COVERED, padded
from threestudio.utils.value_checks import check_at_least, check_choice

SPECK = 0.01  # share of the covered pixels; smaller pieces do not say where the object is
MODES = ("auto", "center", "keep")


@dataclass
class FramingConfig:
    # keep: pictures stay as they are; center: the object is centred and scaled to object_fill; auto: only where it is
    # not framed within the last three keys
    mode: str = "auto"
    object_fill: float = 0.75  # after centring: the longer side of the object, as a fraction of the frame's side
    least_fill: float = 0.45  # auto: an object that fills less is scaled; the small world's renders have 0.5 to 0.9
    most_fill: float = 0.92  # auto: an object that fills more is scaled
    most_offset: float = 0.13  # auto: an object whose middle is farther from the frame's is centred; share of the side


def check_framing(cfg: FramingConfig, key: str) -> None:
    """Raises ValueError with the key that is wrong."""
    check_choice(f"{key}.mode", cfg.mode, MODES)
    if not 0 < cfg.object_fill <= 1:
        raise UserError(f"{key}.object_fill: expected more than 0, at most 1, got {cfg.object_fill:g}")
    if not 0 <= cfg.least_fill <= cfg.most_fill:
        raise UserError(f"{key}.least_fill: expected at most most_fill, got {cfg.least_fill:g} and {cfg.most_fill:g}")
    check_at_least(f"{key}.most_offset", cfg.most_offset, 0)


@dataclass(frozen=True)
class ObjectBox:
    """The pixels of a picture that hold the object: rows top to bottom, columns left to right, the ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def side(self) -> int:  # pixels
        return max(self.bottom - self.top, self.right - self.left)

    @property
    def middle(self) -> tuple[float, float]:  # row, column
        return (self.top + self.bottom) / 2, (self.left + self.right) / 2


def object_box(rgba: Tensor) -> ObjectBox:  # [H, W, 4]
    """The box around what is covered, without specks. Raises ValueError for a picture without an object."""
    rows, columns = without_specks(rgba[..., 3] > COVERED).nonzero(as_tuple=True)
    if rows.numel() == 0:
        raise UserError("the picture's mask is empty")
    return ObjectBox(int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1)


def without_specks(covered: Tensor) -> Tensor:  # [H, W], bool
    """The mask without its pieces of less than SPECK of its pixels, such as removers of backgrounds leave. Returns
    [H, W], bool."""
    import numpy as np
    from scipy.ndimage import label

    pieces, count = label(covered.numpy(), np.ones((3, 3)))  # corners connect
    if count < 2:
        return covered
    sizes = torch.from_numpy(np.bincount(pieces.ravel(), minlength=count + 1))
    kept = sizes >= SPECK * sizes[1:].sum()
    kept[0] = False  # what is not covered
    return kept[torch.from_numpy(pieces).long()] if bool(kept.any()) else covered


def framed(rgba: Tensor, cfg: FramingConfig) -> Tensor:  # [H, W, 4] with straight alpha
    """A square picture of the object [S, S, 4], framed as `cfg` says."""
    square = padded(rgba, 1.0)
    if cfg.mode == "keep" or (cfg.mode == "auto" and is_framed(square, cfg)):
        return square
    return centred(square, cfg.object_fill)


def is_framed(square: Tensor, cfg: FramingConfig) -> bool:  # [S, S, 4]
    """Whether the object is of the size, and in the place, that `cfg` leaves alone."""
    box, side = object_box(square), square.shape[0]
    offset = max(abs(place / side - 0.5) for place in box.middle)
    return cfg.least_fill <= box.side / side <= cfg.most_fill and offset <= cfg.most_offset


def centred(rgba: Tensor, object_fill: float) -> Tensor:  # [H, W, 4]
    """The square window around the object that it fills to `object_fill`; transparent outside of the picture."""
    box = object_box(rgba)
    side = max(round(box.side / object_fill), box.side)
    side += (side - box.side) % 2  # equal borders on both sides
    top, left = (round(place - side / 2) for place in box.middle)
    window = rgba.new_zeros(side, side, 4)
    rows = slice(max(top, 0), min(top + side, rgba.shape[0]))
    columns = slice(max(left, 0), min(left + side, rgba.shape[1]))
    window[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = rgba[rows, columns]
    return window
