"""zero-1-to-3's relative camera, against its definition and against the host's cameras."""

import math

import pytest
import torch
from turboprop.novelview.camera_pose import orbit_of_world_to_camera, relative_pose, world_to_camera_matrices
from turboprop.world.cameras import orbit_c2w

E = torch.tensor([-30.0, 0.0, 45.0, 80.0], dtype=torch.float64)
A = torch.tensor([-170.0, 0.0, 90.0, 200.0], dtype=torch.float64)
R = torch.tensor([1.5, 2.0, 2.2, 1.7], dtype=torch.float64)


def test_cameras_come_back_from_their_matrices():
    matrices = world_to_camera_matrices(orbit_c2w(E, A, R))
    elevation, azimuth, distance = orbit_of_world_to_camera(matrices)
    torch.testing.assert_close(elevation, E)
    torch.testing.assert_close(torch.remainder(azimuth - A, 360.0).sin(), torch.zeros_like(A), atol=1e-9, rtol=0)
    torch.testing.assert_close(distance, R)
    # it looks at the origin, which lies on -z, and up is up
    origin = matrices[:, :, 3]
    torch.testing.assert_close(origin, torch.stack([0 * R, 0 * R, -R], -1), atol=1e-9, rtol=0)
    assert bool((matrices[:, 1, 2] > 0).all())


def zero123_pose(target: torch.Tensor, given: torch.Tensor) -> list[float]:
    """The definition in zero-1-to-3's data loader: spherical coordinates of -R^T t, from +z."""

    def spherical(matrix):
        x, y, z = (-matrix[:, :3].T @ matrix[:, 3]).tolist()
        return math.atan2(math.hypot(x, y), z), math.atan2(y, x), math.sqrt(x * x + y * y + z * z)

    theta, phi, r = spherical(target)
    theta_in, phi_in, r_in = spherical(given)
    turn = (phi - phi_in) % (2 * math.pi)
    return [theta - theta_in, math.sin(turn), math.cos(turn), r - r_in]


def test_the_four_numbers_are_zero123s():
    matrices = world_to_camera_matrices(orbit_c2w(E, A, R))
    expected = torch.tensor([zero123_pose(matrix, matrices[2]) for matrix in matrices], dtype=torch.float64)
    pose = relative_pose(*orbit_of_world_to_camera(matrices), *(value[2] for value in (E, A, R)))
    torch.testing.assert_close(pose, expected)
    assert pose[0, 0] > 0  # from lower down: a larger angle from +z


def test_stable_zero123_has_the_input_views_polar_angle():
    pose = relative_pose(E, A, R, torch.tensor(30.0), torch.tensor(0.0), torch.tensor(1.0), "input_polar_angle")
    torch.testing.assert_close(pose[:, 3], torch.full((4,), math.radians(60.0)).to(pose))
    with pytest.raises(ValueError, match="fourth_number: expected one of distance_difference, .*got 'radius'"):
        relative_pose(E, A, R, E, A, R, "radius")
