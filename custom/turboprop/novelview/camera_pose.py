"""The relative camera of zero-1-to-3: four numbers that say from where, seen from the input view, to look.

Liu et al. 2023, "Zero-1-to-3: Zero-shot One Image to 3D Object" (arXiv 2303.11328), section 3.2 and its released code.
World axes: right-handed, z up. A camera looks at the origin from elevation e, azimuth a and distance r; the polar angle
from +z is theta = 90 degrees - e.
"""

import torch
from torch import Tensor

from threestudio.data.cameras import cartesian_to_spherical
from threestudio.utils.value_checks import check_choice

POSE_NUMBERS = 4
# What the fourth number is. zero123 and zero123-xl: the difference of the distances. stable-zero123: the polar angle of
# the input view, because an absolute elevation cannot be told from a picture alone.
FOURTH_NUMBERS = ("distance_difference", "input_polar_angle")


def check_fourth_number(name: str, key: str = "fourth_number") -> None:
    """Raises ValueError for a name that is none of FOURTH_NUMBERS."""
    check_choice(key, name, FOURTH_NUMBERS)


def relative_pose(
    elevation: Tensor,  # [B] degrees, of the view to draw
    azimuth: Tensor,  # [B] degrees
    distance: Tensor,  # [B] world units
    input_elevation: Tensor,  # [B] or [] degrees, of the input view
    input_azimuth: Tensor,  # [B] or [] degrees
    input_distance: Tensor,  # [B] or [] world units
    fourth_number: str = "distance_difference",
) -> Tensor:
    """(theta - theta_in, sin(a - a_in), cos(a - a_in), fourth number) in radians and world units. Returns [B, 4]."""
    check_fourth_number(fourth_number)
    turn = torch.deg2rad(azimuth - input_azimuth)
    polar_difference = torch.deg2rad(input_elevation - elevation)  # theta - theta_in = e_in - e
    if fourth_number == "distance_difference":
        fourth = distance - input_distance
    else:
        fourth = torch.deg2rad(90.0 - input_elevation).expand_as(elevation)
    return torch.stack([polar_difference, turn.sin(), turn.cos(), fourth], dim=-1)


def orbit_of_world_to_camera(world_to_camera: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # [B, 3, 4]
    """Elevation and azimuth (degrees) and distance of cameras [R | t], each [B].

    The camera's centre is -R^T t. A camera at the origin has no direction: its angles are 0.
    """
    centre = -torch.einsum("bji,bj->bi", world_to_camera[:, :, :3], world_to_camera[:, :, 3])  # [B, 3]
    elevation, azimuth, distance = cartesian_to_spherical(centre)
    return elevation.rad2deg(), azimuth.rad2deg(), distance


def world_to_camera_matrices(c2w: Tensor) -> Tensor:  # [B, 4, 4]
    """The matrices [R | t] of rigid camera-to-world poses: R = R_c2w^T, t = -R_c2w^T centre. Returns [B, 3, 4]."""
    rotation = c2w[:, :3, :3].transpose(1, 2)
    translation = -torch.einsum("bij,bj->bi", rotation, c2w[:, :3, 3])
    return torch.cat([rotation, translation[..., None]], dim=-1)
