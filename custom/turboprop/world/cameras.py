"""Cameras that look at the origin.

World: right-handed, z up, azimuth 0 in front (+x), towards +y. Camera: OpenGL axes
(x right, y up, looks along -z).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from threestudio.data.cameras import camera_rays, spherical_to_cartesian, unit_focal_directions


def orbit_c2w(elevation: Tensor, azimuth: Tensor, distance: Tensor) -> Tensor:
    """Poses on a sphere around the origin, looking at it.

    elevation, azimuth [B] in degrees (|elevation| < 90), distance [B] in world units
    -> c2w [B, 4, 4].
    """
    position = spherical_to_cartesian(torch.deg2rad(elevation), torch.deg2rad(azimuth), distance)
    backward = F.normalize(position, dim=-1)
    right = F.normalize(torch.cross(backward.new_tensor([0.0, 0.0, 1.0]).expand_as(backward), backward, dim=-1), dim=-1)
    up = torch.cross(backward, right, dim=-1)
    c2w = torch.zeros(len(position), 4, 4, dtype=position.dtype, device=position.device)
    c2w[:, :3] = torch.stack([right, up, backward, position], -1)
    c2w[:, 3, 3] = 1
    return c2w


def pixel_rays(c2w: Tensor, fovy: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Rays through pixel centres: c2w [B, 4, 4], fovy [B] in radians -> origins, unit directions [B, H, W, 3]."""
    return camera_rays(unit_focal_directions(height, width).to(c2w), fovy, c2w, normalize=True)


def view_direction(elevation: float, azimuth: float, side_from: float = 45.0, overhead_from: float = 60.0) -> str:
    """threestudio's view words: "overhead", "front", "back" or "side", from degrees.

    `side_from`: front and back reach so far to each side; `overhead_from`: elevation above
    which a view counts as overhead.
    """
    if elevation > overhead_from:
        return "overhead"
    offset = abs(math.remainder(azimuth, 360.0))
    if offset < side_from:
        return "front"
    return "back" if offset > 180.0 - side_from else "side"
