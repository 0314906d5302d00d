"""Pictures of one object from files: a single one from a given place, or several with their cameras.

`load_pictures` takes what `data.image_path` may be:

- a picture: it is framed (see framing) and stands at the place that the config gives;
- a folder in zero-1-to-3's layout: 000.png with its camera 000.npy, a 3x4 matrix from world to camera, and so on;
- a transforms.json as for fitting (see transforms_file), or a folder with one and no cameras beside its pictures: c2w
  matrices, and the field of view.

Pictures with cameras are not framed anew: that would change what their cameras see. Each camera has to see the world's
origin, where the object is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import threestudio
from threestudio.data.cameras import spherical_to_cartesian
from threestudio.data.reference_views import ReferenceViews, orbit_camera
from threestudio.utils.errors import UserError
from threestudio.utils.ops import invert_pose
from threestudio.utils.picture_files import local_path, padded, read_object

from ..fitting.transforms_file import pinhole, read_frames
from .framing import FramingConfig, framed, is_framed
from .renders import BrokenFolder, picture_and_camera_numbers, read_camera_matrix, view_numbers

CAMERA_FILE = "transforms.json"


@dataclass(frozen=True)
class CameraPlace:
    """Where a single picture was taken from."""

    elevation_deg: float
    azimuth_deg: float
    distance: float  # world units
    fovy_deg: float = 49.134  # of pictures without a camera file of their own; zero-1-to-3's renders have 49.134


def load_pictures(path: str, place: CameraPlace, framing: FramingConfig, key: str) -> ReferenceViews:
    """The pictures at `path`, see above. `place` is that of a single one; a folder takes its field of view alone.

    Raises UserError that names the key and the file that is missing or wrong.
    """
    if not path:
        raise UserError(f"{key}: the path of a picture, of a folder of pictures or of a transforms.json is required")
    source = local_path(path)
    if source.is_dir():
        file = source / CAMERA_FILE
        if file.is_file() and not view_numbers(source):
            return _camera_file_pictures(file, key)
        return _folder_pictures(source, math.radians(place.fovy_deg), key)
    if source.suffix.lower() == ".json":
        return _camera_file_pictures(source, key)
    rgba = read_object(source, key)
    square = padded(rgba, 1.0)
    if framing.mode == "auto" and not is_framed(square, framing):
        threestudio.info(f"{source}: the object is centred and scaled to {framing.object_fill:g} of the frame")
    camera = orbit_camera(place.elevation_deg, place.azimuth_deg, place.distance)
    return ReferenceViews((framed(rgba, framing),), camera, torch.tensor([math.radians(place.fovy_deg)]))


def _camera_file_pictures(file: Path, key: str) -> ReferenceViews:
    """The pictures of a transforms.json, each cut to the largest square around its principal point."""
    pictures, angles = [], []
    try:
        frames = read_frames(file)
        for frame in frames:
            rgba = read_object(frame.path, key)
            camera = pinhole(frame, rgba.shape[1], rgba.shape[0])
            left, top, right, bottom = (round(side) for side in camera.square())
            pictures.append(padded(rgba[top:bottom, left:right], 1.0))
            angles.append(2 * math.atan(camera.half_angle()))
            _check_sees_origin(frame.c2w, angles[-1], frame.where)
    except UserError as error:
        named = str(error).startswith(f"{key}: ")  # as what is wrong with a picture is
        raise UserError(str(error) if named else f"{key}: {error}") from error
    return ReferenceViews(tuple(pictures), torch.stack([frame.c2w for frame in frames]), torch.tensor(angles))


def _folder_pictures(folder: Path, fovy: float, key: str) -> ReferenceViews:
    with_picture, with_camera = picture_and_camera_numbers(folder)
    numbers = sorted(with_picture & with_camera)
    if not numbers:
        raise UserError(f"{key}: {folder} has no picture with its camera: expected 000.png and 000.npy, ...")
    _tell_left_out(folder, with_picture - with_camera, ".png without its .npy", key)
    _tell_left_out(folder, with_camera - with_picture, ".npy without its .png", key)
    cameras = []
    try:
        for path in (folder / f"{number:03d}.npy" for number in numbers):
            cameras.append(camera_to_world(read_camera_matrix(path)[None]).float())
            _check_sees_origin(cameras[-1][0], fovy, str(path))
    except (BrokenFolder, UserError) as error:
        raise UserError(f"{key}: {error}") from error
    pictures = tuple(padded(read_object(folder / f"{number:03d}.png", key), 1.0) for number in numbers)
    return ReferenceViews(pictures, torch.cat(cameras), torch.full((len(pictures),), fovy))


def _tell_left_out(folder: Path, numbers: set[int], what: str, key: str) -> None:
    if numbers:
        names = [f"{number:03d}" for number in sorted(numbers)]
        some = ", ".join(names[:5] + ["..."] * (len(names) > 5))
        threestudio.warn(f"{key}: {folder}: left out {len(names)} {what}: {some}")


def _check_sees_origin(c2w: Tensor, fovy: float, where: str) -> None:  # [4, 4], OpenGL axes; radians
    """Raises UserError where the world's origin is not in the picture: axes of another kind are found out so."""
    right, up, back = (-c2w[:3, :3].T @ c2w[:3, 3]).tolist()  # the origin as the camera has it
    if not max(abs(right), abs(up)) < -back * math.tan(fovy / 2):
        raise UserError(
            f"{where}: the camera does not see the world's origin, where the object has to be; expected OpenGL axes "
            "(x right, y up, the camera looks along -z)"
        )


def camera_to_world(world_to_camera: Tensor) -> Tensor:  # [V, 3, 4] -> [V, 4, 4]
    """The inverse of rigid matrices [R | t]."""
    last = world_to_camera.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(world_to_camera), 1, 4)
    return invert_pose(torch.cat([world_to_camera, last], dim=1))


def nearest_views(views: ReferenceViews, elevation: Tensor, azimuth: Tensor) -> Tensor:
    """Which of V pictures was taken from nearest in angle to each of B cameras, in degrees: [B], int64."""
    places = views.c2w[:, :3, 3] / views.distances[:, None]  # [V, 3]
    directions = spherical_to_cartesian(elevation.deg2rad(), azimuth.deg2rad(), torch.ones_like(elevation))
    return (directions @ places.to(directions).T).argmax(dim=-1)
