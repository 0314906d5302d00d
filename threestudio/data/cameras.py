"""Cameras around the origin: poses, rays, and the batch that renderers and guidances ask for.

World: right-handed, z up, azimuth 0 in front (+x), towards +y. Cameras: c2w, OpenGL axes (x right, y up, looking
along -z).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from threestudio.utils.ops import get_mvp_matrix, get_projection_matrix, get_ray_directions, get_rays

NEAR, FAR = 0.01, 100.0  # planes of the projection matrix, world units


def look_at(positions: Tensor, center: Tensor, up: Tensor) -> Tensor:
    """Camera-to-world matrices. positions, center, up: [B, 3] -> [B, 4, 4]."""
    lookat = F.normalize(center - positions, dim=-1)
    right = F.normalize(torch.linalg.cross(lookat, up, dim=-1), dim=-1)
    up = F.normalize(torch.linalg.cross(right, lookat, dim=-1), dim=-1)
    c2w = positions.new_zeros(positions.shape[0], 4, 4)
    c2w[:, :3, :] = torch.stack([right, up, -lookat, positions], dim=-1)
    c2w[:, 3, 3] = 1.0
    return c2w


def look_at_origin(positions: Tensor) -> Tensor:
    """Camera-to-world matrices of upright cameras that look at the origin. positions [B, 3] -> [B, 4, 4]."""
    up = positions.new_tensor([0.0, 0.0, 1.0]).expand_as(positions)
    return look_at(positions, torch.zeros_like(positions), up)


def spherical_to_cartesian(elevation: Tensor, azimuth: Tensor, distance: Tensor) -> Tensor:
    """Angles in radians, [B] each -> [B, 3]."""
    return distance[:, None] * torch.stack(
        [elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], dim=-1
    )


def cartesian_to_spherical(positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Elevation and azimuth in radians, azimuth in [-pi, pi], and distance of positions [B, 3]; each [B].

    The origin has no direction: its angles are 0.
    """
    x, y, z = positions.unbind(-1)
    return torch.atan2(z, torch.hypot(x, y)), torch.atan2(y, x), positions.norm(dim=-1)


def unit_focal_directions(height: int, width: int) -> Tensor:
    """Ray directions of a camera with a focal length of one pixel [H, W, 3]."""
    return get_ray_directions(H=height, W=width, focal=1.0)


def camera_rays(
    directions: Tensor,  # of focal length 1 [H, W, 3]
    fovy: Tensor,  # [B], radians
    c2w: Tensor,  # [B, 4, 4]
    normalize: bool,
    noise_scale: float = 0.0,  # see `get_rays`
) -> tuple[Tensor, Tensor]:
    """Origins and directions of the rays through pixels' centres, [B, H, W, 3] each."""
    focal = 0.5 * directions.shape[0] / torch.tan(0.5 * fovy)  # [B]
    directions = directions.expand(c2w.shape[0], -1, -1, -1).clone()
    directions[..., :2] /= focal[:, None, None, None]
    return get_rays(directions, c2w, keepdim=True, noise_scale=noise_scale, normalize=normalize)


def batch_of_cameras(
    c2w: Tensor,  # [B, 4, 4]
    fovy: Tensor,  # [B], radians
    directions: Tensor,  # of focal length 1 [H, W, 3]
    rays_d_normalize: bool = True,
    rays_noise_scale: float = 0.0,  # see `get_rays`
) -> dict[str, Any]:
    """What renderers ask of B cameras.

    Returns:
        rays_o, rays_d [B, H, W, 3]; mvp_mtx, proj_mtx, c2w [B, 4, 4]; camera_positions [B, 3]; fovy [B]; height, width.
    """
    height, width = directions.shape[:2]
    rays_o, rays_d = camera_rays(directions, fovy, c2w, rays_d_normalize, rays_noise_scale)
    proj_mtx = get_projection_matrix(fovy, width / height, NEAR, FAR)
    return {
        "rays_o": rays_o,
        "rays_d": rays_d,
        "mvp_mtx": get_mvp_matrix(c2w, proj_mtx),
        "proj_mtx": proj_mtx,
        "c2w": c2w,
        "camera_positions": c2w[:, :3, 3],
        "fovy": fovy,
        "height": height,
        "width": width,
    }


def batch_of_poses(
    c2w: Tensor,  # [B, 4, 4]
    fovy: Tensor,  # [B], radians
    directions: Tensor,  # of focal length 1 [H, W, 3]
    rays_d_normalize: bool = True,
    rays_noise_scale: float = 0.0,  # see `get_rays`
) -> dict[str, Any]:
    """`batch_of_cameras`, and what guidances ask: elevation, azimuth (degrees), camera_distances [B].

    The light_positions [B, 3] are the cameras' own.
    """
    cameras = batch_of_cameras(c2w, fovy, directions, rays_d_normalize, rays_noise_scale)
    elevation, azimuth, distance = cartesian_to_spherical(cameras["camera_positions"])
    return {
        **cameras,
        "light_positions": cameras["camera_positions"],
        "elevation": elevation.rad2deg(),
        "azimuth": azimuth.rad2deg(),
        "camera_distances": distance,
    }
