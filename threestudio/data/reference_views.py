"""Pictures of one object with the cameras that took them: what a scene is to look like from there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from threestudio.data.cameras import cartesian_to_spherical, look_at_origin, spherical_to_cartesian
from threestudio.utils.errors import UserError
from threestudio.utils.picture_files import COVERED, padded, read_map, read_object, resized, resized_channels


@dataclass(frozen=True)
class ReferenceViews:
    """V pictures and their cameras. Pictures may differ in size; all are brought to one by `at`."""

    pictures: tuple[Tensor, ...]  # V of [H, W, 4] in [0, 1], sRGB with straight alpha
    c2w: Tensor  # [V, 4, 4], OpenGL axes
    fovy: Tensor  # [V], radians
    depths: tuple[Tensor, ...] | None = None  # V of [H, W, 1], in any unit
    normals: tuple[Tensor, ...] | None = None  # V of [H, W, 3], (1 - n) / 2 of world normals n

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def distances(self) -> Tensor:  # [V], world units from the origin
        return self.c2w[:, :3, 3].norm(dim=-1)

    @property
    def elevation(self) -> Tensor:  # [V], degrees
        return cartesian_to_spherical(self.c2w[:, :3, 3])[0].rad2deg()

    @property
    def azimuth(self) -> Tensor:  # [V], degrees in [-180, 180]
        return cartesian_to_spherical(self.c2w[:, :3, 3])[1].rad2deg()

    def at(self, height: int, width: int) -> SizedViews:
        """The pictures at one size; where the shapes differ, transparent borders are added, nothing is stretched."""
        aspect = width / height
        pictures = torch.stack([resized(padded(p, aspect), height, width) for p in self.pictures])

        def maps(given: tuple[Tensor, ...] | None) -> Tensor | None:
            if given is None:
                return None
            return torch.stack([resized_channels(padded(values, aspect), height, width) for values in given])

        rgb, alpha = pictures[..., :3], pictures[..., 3:]
        return SizedViews(rgb, alpha, alpha > COVERED, maps(self.depths), maps(self.normals))


@dataclass(frozen=True)
class SizedViews:
    """V pictures of one size."""

    rgb: Tensor  # [V, H, W, 3] in [0, 1], not multiplied by alpha
    alpha: Tensor  # [V, H, W, 1] in [0, 1]
    mask: Tensor  # [V, H, W, 1], bool
    depth: Tensor | None  # [V, H, W, 1]
    normal: Tensor | None  # [V, H, W, 3]

    def on_white(self) -> Tensor:  # [V, H, W, 3]
        return self.rgb * self.alpha + (1 - self.alpha)


def orbit_camera(elevation_deg: float, azimuth_deg: float, distance: float) -> Tensor:
    """A camera [1, 4, 4] that looks at the origin from a place in degrees and world units."""
    angles = (torch.tensor([math.radians(angle)]) for angle in (elevation_deg, azimuth_deg))
    return look_at_origin(spherical_to_cartesian(*angles, torch.tensor([float(distance)])))


def single_view(
    image_path: str,
    c2w: Tensor,  # [1, 4, 4]
    fovy: float,  # radians
    requires_depth: bool = False,
    requires_normal: bool = False,
    key: str = "data",
) -> ReferenceViews:
    """The picture `image_path`; of X_rgba.png also X_depth.png and X_normal.png where they are required.

    Raises UserError, naming the key and the file, for a picture that is missing or of no use.
    """
    rgba = read_object(image_path, f"{key}.image_path")
    depths = normals = None
    if requires_depth:
        depths = (_beside(image_path, "depth", 1, rgba, key),)
    if requires_normal:
        normals = (_beside(image_path, "normal", 3, rgba, key),)
    return ReferenceViews((rgba,), c2w, torch.tensor([fovy]), depths, normals)


def _beside(image_path: str, kind: str, channels: int, rgba: Tensor, key: str) -> Tensor:
    """The map that lies beside a picture, brought to the picture's shape [H, W, channels]."""
    source = Path(image_path)
    if not source.name.endswith("_rgba.png"):
        raise UserError(
            f"{key}.requires_{kind}: the {kind} map of X_rgba.png is X_{kind}.png; got the picture {source.name}"
        )
    beside = source.with_name(source.name.replace("_rgba.png", f"_{kind}.png"))
    values = read_map(beside, f"{key}.requires_{kind}", channels)
    return resized_channels(values, *rgba.shape[:2])
