"""Folders of renders in zero-1-to-3's layout, at any number of folders.

    <root>/valid_paths.json         a JSON list of the folders' names; without it all sub-folders are taken
    <root>/<name>/000.png ...       square pictures, RGBA
    <root>/<name>/000.npy ...       the cameras: world to camera [R | t], 3 x 4, OpenGL axes, world z up

The names are kept in an index file that is mapped, not read. So opening a root and reading a view take the same time at
ten folders and at 800,000; only the first opening, which writes the index, grows with their number.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threestudio.utils.errors import MissingFileError, UserError, first_line
from threestudio.utils.staged_files import staged

from ..fitting.posed_views import read_picture
from ..teachers.text import cache_folder
from .camera_pose import orbit_of_world_to_camera

VALID_PATHS = "valid_paths.json"


class BrokenFolder(ValueError):
    """A folder, a picture or a camera that cannot be used; the message names it."""


@dataclass(frozen=True)
class FolderIndex:
    """The folders of a root, by number."""

    root: Path
    names: np.ndarray  # [N] of bytes, mapped from a file

    def __len__(self) -> int:
        return len(self.names)

    def folder(self, number: int) -> Path:
        return self.root / os.fsdecode(bytes(self.names[number]))

    def fingerprint(self) -> str:
        """Tells this list of names from others, by their number and by up to 256 of them."""
        chosen = np.linspace(0, len(self) - 1, min(len(self), 256)).astype(np.int64)
        return hashlib.sha256(b"\0".join([str(len(self)).encode(), *self.names[chosen].tolist()])).hexdigest()[:32]


def open_index(root: Path | str, key: str = "data.root") -> FolderIndex:
    """The folders of a root. Raises FileNotFoundError where there is no such root, and ValueError where it has no
    folders, or a valid_paths.json that is no list of folder names."""
    root = Path(root).expanduser()
    if not root.is_dir():
        raise MissingFileError(f"{key}: no folder {root}")
    source = root / VALID_PATHS
    state = (source if source.is_file() else root).stat()
    known = hashlib.sha256(f"{root.resolve()}\0{source.is_file()}".encode()).hexdigest()[:24]
    folder = cache_folder() / "novelview"
    path = folder / f"{known}-{state.st_size}-{state.st_mtime_ns}.npy"
    if not path.is_file():
        _write_index(path, known, _names_in(root, source, key))
    return FolderIndex(root, np.load(path, mmap_mode="r"))


def _names_in(root: Path, source: Path, key: str) -> list[str]:
    if not source.is_file():
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        if not names:
            raise UserError(f"{key}: {root} has neither folders of renders nor {VALID_PATHS}")
        return names
    try:
        names = json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{key}: {source} is not valid JSON: {error}") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{key}: {source}: expected a list of folder names")
    outside = [name for name in names if name.startswith("/") or ".." in name.split("/")]
    if outside:
        raise UserError(f"{key}: {source}: {outside[0]!r} is not a folder inside {root}")
    return names


def _write_index(path: Path, known: str, names: Sequence[str]) -> None:
    """Writes the index whole or not at all, and removes those of older states of the same root."""
    older = list(path.parent.glob(f"{known}-*.npy"))
    with staged(str(path)) as partial:
        np.save(partial, np.array([os.fsencode(name) for name in names]))
    for old in older:
        if old != path:
            old.unlink(missing_ok=True)


def split_of(count: int, validation_share: float) -> tuple[range, range]:
    """The numbers of training and of validation folders: the first and the last ones, as zero-1-to-3 splits them.

    At least one folder is for validation where there are two or more, unless the share is 0.
    """
    held_out = int(count * validation_share)
    if validation_share > 0 and count > 1:
        held_out = min(max(held_out, 1), count - 1)
    return range(count - held_out), range(count - held_out, count)


def view_numbers(folder: Path) -> list[int]:
    """The sorted numbers of the views that have a picture and a camera. Raises BrokenFolder where there is no such
    folder."""
    pictures, cameras = picture_and_camera_numbers(folder)
    return sorted(pictures & cameras)


def picture_and_camera_numbers(folder: Path) -> tuple[set[int], set[int]]:
    """The numbers of the pictures NNN.png, and of the cameras NNN.npy, of three digits or more. Raises BrokenFolder
    where there is no such folder."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise BrokenFolder(f"{folder}: {error.strerror}") from error
    pictures, cameras = ({name[:-4] for name in names if name.endswith(ending)} for ending in (".png", ".npy"))
    return _numbers(pictures), _numbers(cameras)


def _numbers(stems: set[str]) -> set[int]:
    return {int(stem) for stem in stems if stem.isascii() and stem.isdigit() and stem == f"{int(stem):03d}"}


def read_camera_matrix(path: Path) -> Tensor:
    """A camera's matrix [R | t] from world to camera, OpenGL axes: [3, 4], float64. Raises BrokenFolder for a file that
    holds no finite 3 x 4 matrix of a rotation and a translation."""
    try:
        with open(path, "rb") as file:  # np.load would try archives and pickles too
            matrix = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BrokenFolder(f"{path}: no camera in it ({first_line(error)})") from error
    if matrix.shape != (3, 4) or matrix.dtype.kind not in "fiu":
        raise BrokenFolder(f"{path}: expected a 3 x 4 matrix, got {matrix.dtype} of shape {list(matrix.shape)}")
    matrix = matrix.astype(np.float64)
    if not np.isfinite(matrix).all():
        raise BrokenFolder(f"{path}: expected a 3 x 4 matrix of finite numbers; some are NaN or infinite")
    rotation = matrix[:, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-2 or np.linalg.det(rotation) < 0:
        raise BrokenFolder(f"{path}: the first three columns are no rotation: they stretch or mirror")
    return torch.from_numpy(matrix)


def read_camera(path: Path) -> Tensor:
    """A camera's elevation and azimuth (degrees) and distance (world units): [3]. Raises BrokenFolder."""
    return torch.stack([part[0] for part in orbit_of_world_to_camera(read_camera_matrix(path)[None])]).float()


def read_render(path: Path, size: int) -> Tensor:
    """A picture over white, resized: [3, size, size] in [-1, 1]. Raises BrokenFolder for a file that is no whole square
    picture."""
    try:
        picture = read_picture(path, size)[0]  # [size, size, 4]
    except (ValueError, FileNotFoundError) as error:
        raise BrokenFolder(str(error)) from error
    colors, alpha = picture[..., :3], picture[..., 3:]
    return ((colors * alpha + 1.0 - alpha) * 2.0 - 1.0).permute(2, 0, 1)


def read_view(folder: Path, number: int, size: int) -> tuple[Tensor, Tensor]:
    """Picture [3, size, size] in [-1, 1] and camera [3] of a view; raises BrokenFolder."""
    return read_render(folder / f"{number:03d}.png", size), read_camera(folder / f"{number:03d}.npy")


def evaluation_folders(root: Path | str, key: str = "--data") -> list[Path]:
    """The objects of an evaluation root, sorted: its folders of views, or those two levels below.

    <root>/<object>/000.png is the layout above; <root>/<object>/render_mvs_25/model/000.png is that of the GSO renders
    which Free3D and EscherNet are evaluated on. Raises FileNotFoundError or ValueError where there is no such root, or
    nothing in it.
    """
    index = open_index(root, key)
    found = []
    for number in range(len(index)):
        folder = index.folder(number)
        nested = sorted(folder.glob("render_mvs_*/model"))
        found.append(nested[0] if nested else folder)
    return sorted(found)
