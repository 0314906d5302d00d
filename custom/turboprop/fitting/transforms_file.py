"""transforms.json: cameras of pictures, as the NeRF synthetic scenes, instant-ngp and nerfstudio write them.

Angles are in radians, lengths of the camera in pixels of the picture. Whatever of a camera is not read is an error
that names the file: a picture never stands for a camera that it was not taken with.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from threestudio.utils.errors import MissingFileError, UserError
from threestudio.utils.mesh_reading.named_files import find_named_file
from threestudio.utils.value_checks import is_number

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".PNG", ".JPG", ".JPEG")  # tried for a name without one
PINHOLE_MODELS = ("OPENCV", "FULL_OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")
DISTORTIONS = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
DISAGREEMENT = 0.02  # share by which two figures of one focal length may differ


@dataclass(frozen=True)
class Frame:
    """A picture of a transforms.json, and what the file says of its camera."""

    path: Path
    c2w: Tensor  # [4, 4], OpenGL axes
    camera: dict[str, Any]  # the file's keys, and the frame's own over them
    where: str  # for messages: the file and the frame


@dataclass(frozen=True)
class Pinhole:
    """Focal lengths and principal point, pixels of a picture of `width` x `height`."""

    fl_x: float
    fl_y: float
    cx: float
    cy: float
    width: int
    height: int

    def half_angle(self) -> float:
        """Tangent of half the field of view of the largest square around the principal point that is in the picture."""
        across = min(self.cx, self.width - self.cx) / self.fl_x
        return min(across, min(self.cy, self.height - self.cy) / self.fl_y)

    def square(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of that square; of pixels that are not square, a rectangle in pixels."""
        x, y = self.half_angle() * self.fl_x, self.half_angle() * self.fl_y
        return self.cx - x, self.cy - y, self.cx + x, self.cy + y


def read_frames(file: Path | str) -> list[Frame]:
    """The frames of a file, whose pictures are all there. Raises MissingFileError or UserError, which name the file."""
    file = Path(file)
    if not file.is_file():
        raise MissingFileError(f"no camera file at {file}")
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid JSON: {error}") from error
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames:
        raise UserError(f"{file}: expected a list of frames, with file_path and transform_matrix; got none")
    shared = {key: value for key, value in content.items() if key != "frames"}
    return [_frame(file, index, frame, shared) for index, frame in enumerate(frames)]


def _frame(file: Path, index: int, frame: Any, shared: dict[str, Any]) -> Frame:
    where = f"{file}: frame {index}"
    if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str) or "transform_matrix" not in frame:
        raise UserError(f"{where}: expected file_path and transform_matrix, got {str(frame)[:80]}")
    camera = {**shared, **frame}
    model = "a fisheye (is_fisheye)" if camera.get("is_fisheye") else camera.get("camera_model") or "PINHOLE"
    if str(model).upper() not in PINHOLE_MODELS:
        raise UserError(f"{where}: camera_model {model}: only pinhole cameras are read ({', '.join(PINHOLE_MODELS)})")
    for name in DISTORTIONS:
        if _number(camera, name, where, default=0.0) != 0.0:
            given = f"{name} = {camera[name]}"
            raise UserError(f"{where}: lens distortion is not read ({given}): undistort the pictures first")
    path, c2w = _picture_path(file, frame["file_path"], where), _matrix(frame["transform_matrix"], where)
    found = Frame(path, c2w, camera, where)
    if all(camera.get(name) is None for name in ("camera_angle_x", "fl_x")):
        raise UserError(f"{where}: expected camera_angle_x in radians, or fl_x in pixels, of the file or of each frame")
    return found


def _number(camera: dict[str, Any], name: str, where: str, default: float | None = None) -> float | None:
    """The value of a key; null is as if there was none."""
    value = camera.get(name)
    if value is None:
        return default
    if not (is_number(value) and math.isfinite(value)):
        raise UserError(f"{where}: {name}: expected a number, got {value!r}")
    return value


def _picture_path(file: Path, name: str, where: str) -> Path:
    """The picture of a name: as it stands, with the separators of Windows, or without its ending."""
    for given in dict.fromkeys((name, name.replace("\\", "/"))):
        path = file.parent / given
        for candidate in (path, *(path.with_name(path.name + ending) for ending in PICTURE_ENDINGS)):
            if candidate.is_file():
                return candidate
    otherwise = find_named_file(str(file.parent), name)  # case, %20; a full path of another machine is its last name
    if otherwise is not None:
        return Path(otherwise)
    if path.suffix.lower() in PICTURE_ENDINGS:
        raise MissingFileError(f"{where}: no picture at {path}")
    raise MissingFileError(f"{where}: no picture at {path}.png, nor with another ending")


def _matrix(rows: Any, where: str) -> Tensor:
    """[4, 4] of 4 x 4 or 3 x 4 numbers that turn and move, and neither stretch nor mirror."""
    try:
        matrix = torch.tensor(rows, dtype=torch.float32)
    except (TypeError, ValueError):
        matrix = torch.empty(0)
    if matrix.shape not in ((4, 4), (3, 4)) or not bool(torch.isfinite(matrix).all()):
        raise UserError(f"{where}: transform_matrix: expected 4 x 4 or 3 x 4 finite numbers, got {str(rows)[:80]}")
    last = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    if len(matrix) == 4 and not torch.allclose(matrix[3:], last, atol=1e-4):
        raise UserError(f"{where}: transform_matrix: expected the last row 0 0 0 1, got {rows[3]}")
    turn = matrix[:3, :3]
    if not torch.allclose(turn.T @ turn, torch.eye(3), atol=1e-2) or torch.det(turn) < 0:
        raise UserError(f"{where}: transform_matrix: expected a rotation and a position; it stretches or mirrors")
    return torch.cat([matrix[:3], last])


def pinhole(frame: Frame, width: int, height: int) -> Pinhole:
    """The camera of a picture of that many pixels; figures of another size are scaled. Raises UserError."""
    camera, where = frame.camera, frame.where
    w, h = _number(camera, "w", where, default=width), _number(camera, "h", where, default=height)
    if w <= 0 or h <= 0 or abs((width / w) / (height / h) - 1.0) > DISAGREEMENT:
        has = f"{frame.path}, which has {width} x {height} pixels"
        raise UserError(f"{where}: w and h ({w:g} x {h:g}) are not of {has}")
    fl_x = _focal_length(frame, "x", w)
    fl_y = _focal_length(frame, "y", h) or fl_x
    cx, cy = _number(camera, "cx", where, default=w / 2), _number(camera, "cy", where, default=h / 2)
    right, down = width / w, height / h
    found = Pinhole(fl_x * right, fl_y * down, cx * right, cy * down, width, height)
    whole = min(width / found.fl_x, height / found.fl_y) / 2  # of a principal point in the middle
    if found.half_angle() < whole / 2:
        raise UserError(
            f"{where}: the principal point (cx, cy) = ({cx:g}, {cy:g}) is far off the middle of a picture of "
            f"{w:g} x {h:g}; cut the picture around it first, {frame.path}"
        )
    return found


def _focal_length(frame: Frame, axis: str, pixels: float) -> float | None:
    """In pixels, of `fl_x` or `camera_angle_x` (or y); None where the file gives neither."""
    length = _number(frame.camera, f"fl_{axis}", frame.where)
    angle = _number(frame.camera, f"camera_angle_{axis}", frame.where)
    if length is not None and length <= 0:
        raise UserError(f"{frame.where}: fl_{axis}: expected more than 0, got {length:g}")
    if angle is None:
        return length
    if not 0 < angle < math.pi:
        raise UserError(f"{frame.where}: camera_angle_{axis}: expected radians between 0 and pi, got {angle:g}")
    of_angle = 0.5 * pixels / math.tan(0.5 * angle)
    if length is not None and abs(of_angle / length - 1.0) > DISAGREEMENT:
        raise UserError(
            f"{frame.where}: camera_angle_{axis} = {angle:g} means a focal length of {of_angle:g} pixels, "
            f"fl_{axis} says {length:g}: give one of them"
        )
    return length if length is not None else of_angle
