"""The world's cameras, and that they are the host's."""

import pytest
import torch
from turboprop.world.cameras import orbit_c2w, pixel_rays, view_direction

from threestudio.data.cameras import camera_rays, look_at, spherical_to_cartesian, unit_focal_directions
from threestudio.models.prompt_processors.views import ViewKeys, direction_index, view_directions


def some_cameras(count: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    uniform = torch.rand(3, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return uniform[0] * 160 - 80, uniform[1] * 720 - 360, 1 + uniform[2] * 2


def test_poses_are_rotations_that_look_at_the_origin():
    elevation, azimuth, distance = some_cameras()
    c2w = orbit_c2w(elevation, azimuth, distance)
    rotation, position = c2w[:, :3, :3], c2w[:, :3, 3]
    assert torch.allclose(rotation.mT @ rotation, torch.eye(3, dtype=c2w.dtype).expand_as(rotation), atol=1e-12)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(40, dtype=c2w.dtype))
    assert torch.allclose(position.norm(dim=-1), distance)
    assert torch.allclose(position - distance[:, None] * rotation[:, :, 2], torch.zeros_like(position), atol=1e-12)
    assert bool((rotation[:, 2, 1] > 0).all())  # up is up
    assert torch.allclose(rotation[:, 2, 0], torch.zeros(40, dtype=c2w.dtype), atol=1e-12)  # the horizon is level
    assert torch.equal(c2w[:, 3], torch.tensor([[0.0, 0, 0, 1]], dtype=c2w.dtype).expand(40, 4))


@pytest.mark.parametrize(
    "elevation, azimuth, position",
    [(0, 0, (2, 0, 0)), (0, 90, (0, 2, 0)), (0, 180, (-2, 0, 0)), (0, -90, (0, -2, 0)), (30, 0, (3**0.5, 0, 1))],
)
def test_azimuth_0_is_in_front(elevation, azimuth, position):
    c2w = orbit_c2w(*(torch.tensor([float(v)]) for v in (elevation, azimuth, 2)))
    assert torch.allclose(c2w[0, :3, 3], torch.tensor(position, dtype=torch.float32), atol=1e-6)


def test_poses_and_rays_are_the_hosts():
    """Teachers' pictures and a generator's renders agree on where everything is."""
    elevation, azimuth, distance = some_cameras(6)
    c2w = orbit_c2w(elevation, azimuth, distance).float()
    position = spherical_to_cartesian(elevation.deg2rad(), azimuth.deg2rad(), distance)
    host = look_at(position, torch.zeros(6, 3).double(), torch.tensor([0.0, 0, 1]).double().expand(6, 3))
    assert torch.allclose(c2w, host.float(), atol=1e-6)
    fovy = torch.linspace(0.5, 1.0, 6)
    origins, directions = pixel_rays(c2w, fovy, 5, 8)
    host_origins, host_directions = camera_rays(unit_focal_directions(5, 8), fovy, c2w, True)
    assert torch.allclose(origins, host_origins.reshape(origins.shape), atol=1e-6)
    assert torch.allclose(directions, host_directions, atol=1e-6)


def test_rays_span_the_field_of_view():
    c2w = orbit_c2w(torch.zeros(1), torch.zeros(1), torch.ones(1))
    _, directions = pixel_rays(c2w, torch.tensor([1.0]), 100, 100)
    assert torch.allclose(directions.norm(dim=-1), torch.ones(1, 100, 100))
    assert torch.allclose(directions[0, 49:51, 49:51].mean((0, 1)), torch.tensor([-1.0, 0, 0]), atol=1e-4)
    top = directions[0, 0, 49:51].mean(0)
    expected = torch.atan(torch.tan(torch.tensor(0.5)) * 99 / 100)
    assert torch.allclose(torch.atan2(top[2], -top[0]), expected, atol=1e-4)
    # From the front, +y is to the right: the object's left hand is at the picture's right.
    assert directions[0, 50, 99, 1] > 0


@pytest.mark.parametrize(
    "elevation, azimuth, word",
    [
        (0, 0, "front"), (0, 44.9, "front"), (0, -44.9, "front"), (0, 45, "side"), (0, -45, "side"),
        (0, 90, "side"), (0, 135, "side"), (0, -135, "side"), (0, 135.1, "back"), (0, 180, "back"),
        (0, -180, "back"), (0, 359, "front"), (0, 360 + 90, "side"), (0, -540, "back"),
        (60, 0, "front"), (60.1, 0, "overhead"), (89, 180, "overhead"), (-10, 180, "back"),
    ],
)  # fmt: skip
def test_view_words(elevation, azimuth, word):
    assert view_direction(elevation, azimuth) == word


def test_captions_and_prompt_processors_use_the_same_words():
    elevation, azimuth, distance = some_cameras(300)
    words = ("side", "front", "back", "overhead")
    index = direction_index(view_directions(ViewKeys()), elevation, azimuth, distance)
    assert [words[i] for i in index] == [view_direction(float(e), float(a)) for e, a in zip(elevation, azimuth)]
