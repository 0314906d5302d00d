"""Cameras that look at the origin.

World: right-handed, z up, azimuth 0 in front (+x), towards +y. Camera: OpenGL axes
(x right, y up, looks along -z).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def orbit_c2w(elevation: Tensor, azimuth: Tensor, distance: Tensor) -> Tensor:
    """Poses on a sphere around the origin, looking at it.

    elevation, azimuth [B] in degrees (|elevation| < 90), distance [B] in world units
    -> c2w [B, 4, 4].
    """
    elevation, azimuth = torch.deg2rad(elevation), torch.deg2rad(azimuth)
    position = distance[:, None] * torch.stack(
        [elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], -1
    )
    backward = F.normalize(position, dim=-1)
    right = F.normalize(torch.cross(backward.new_tensor([0.0, 0.0, 1.0]).expand_as(backward), backward, dim=-1), dim=-1)
    up = torch.cross(backward, right, dim=-1)
    c2w = torch.zeros(len(position), 4, 4, dtype=position.dtype, device=position.device)
    c2w[:, :3] = torch.stack([right, up, backward, position], -1)
    c2w[:, 3, 3] = 1
    return c2w


def pixel_rays(c2w: Tensor, fovy: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Rays through pixel centres: c2w [B, 4, 4], fovy [B] in radians -> origins, unit directions [B, H, W, 3]."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=c2w.dtype, device=c2w.device) + 0.5,
        torch.arange(width, dtype=c2w.dtype, device=c2w.device) + 0.5,
        indexing="ij",
    )
    focal = 0.5 * height / torch.tan(0.5 * fovy)[:, None, None]  # [B, 1, 1]
    local = torch.stack(
        [(x - width / 2) / focal, (height / 2 - y) / focal, -torch.ones_like(x).expand(len(c2w), -1, -1)], -1
    )
    directions = F.normalize(torch.einsum("bij,bhwj->bhwi", c2w[:, :3, :3], local), dim=-1)
    return c2w[:, None, None, :3, 3].expand_as(directions), directions


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
