"""Files that a mesh file names: where they are, as people and programs of other systems write it, and pictures."""

from __future__ import annotations

import io
import os
import re
from urllib.parse import unquote

import numpy as np
import torch
from torch import Tensor

from threestudio.utils.errors import UserError


def find_named_file(folder: str, name: str) -> str | None:
    """The path of the file that a mesh file in `folder` calls `name`; None where there is none.

    Backslashes separate folders too, upper and lower case need not agree, %20 may stand for a blank, and a full path
    of another machine stands for the file of that name beside the mesh.
    """
    name = name.strip().strip("\"'")
    found = _find(folder, name)
    return _find(folder, unquote(name)) if found is None and "%" in name else found


def _find(folder: str, name: str) -> str | None:
    for spelling in (name, name.replace("\\", "/")):
        path = os.path.join(folder, spelling)
        if spelling and os.path.isfile(path):
            return path
    parts = [part for part in re.split(r"[\\/]+", name) if part not in ("", ".")]
    is_absolute = name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) is not None
    path = _by_any_case(folder, parts[-1:] if is_absolute else parts)
    return path if parts and path and os.path.isfile(path) else None


def _by_any_case(folder: str, parts: list[str]) -> str | None:
    path = folder
    for part in parts:
        if part == "..":
            path = os.path.join(path, part)
            continue
        try:
            entries = sorted(os.listdir(path or "."))
        except OSError:
            return None
        matches = [entry for entry in entries if entry.lower() == part.lower()]
        if not matches:
            return None
        path = os.path.join(path, part if part in matches else matches[0])
    return path


def named_file(path: str, name: str, what: str) -> str:
    """find_named_file for a name that the file `path` has; UserError where there is none. what: "the texture"."""
    found = find_named_file(os.path.dirname(path), name)
    if found is None:
        raise UserError(f"{path} names {what} {name}, which is not there")
    return found


def read_picture(source: str | bytes, label: str) -> Tensor:  # [H, W, 3] uint8, sRGB
    """A picture's texels, of a path or of a file's bytes; `label` names it where it cannot be read (UserError)."""
    from PIL import Image

    from threestudio.utils.picture_decoding import DECODING_ERRORS, deep_grey, first_bytes, reason_unread

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            deep = deep_grey(image)
            if deep is not None:
                texels = (deep[..., [0, 0, 0]] * 255.0).round().astype(np.uint8)
            else:
                texels = np.array(image.convert("RGB"))
    except DECODING_ERRORS as error:
        reason = reason_unread(error, source[:32] if isinstance(source, bytes) else first_bytes(source))
        raise UserError(f"{label} cannot be read as a picture ({reason})") from error
    return torch.from_numpy(texels)
