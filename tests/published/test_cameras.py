"""Cameras, rays and projections of poses that can be read off: world z up, azimuth 0 in front (+x), OpenGL cameras."""

import math

import pytest
import torch
from turboprop.world.cameras import orbit_c2w, pixel_rays

from threestudio.data.cameras import (
    batch_of_poses,
    cartesian_to_spherical,
    look_at,
    spherical_to_cartesian,
    unit_focal_directions,
)
from threestudio.data.uncond import (
    RandomCameraDataModuleConfig,
    RandomCameraDataset,
    RandomCameraIterableDataset,
)
from threestudio.utils.config import parse_structured
from threestudio.utils.ops import (
    get_cam_info_gaussian,
    get_mvp_matrix,
    get_projection_matrix,
    get_ray_directions,
    get_rays,
)

RIGHT_ANGLE = torch.tensor([math.pi / 2])
FRONT = torch.tensor([[[0.0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]])  # at (1, 0, 0), looks at the origin


def close(found, expected):
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), atol=1e-6, rtol=1e-5)


def test_the_camera_in_front():
    """Its right is +y, its up +z, and it looks along -x."""
    position = torch.tensor([[1.0, 0, 0]])
    close(look_at(position, torch.zeros(1, 3), torch.tensor([[0.0, 0, 1]])), FRONT)
    close(orbit_c2w(torch.zeros(1), torch.zeros(1), torch.ones(1)), FRONT)


@pytest.mark.parametrize(
    "elevation, azimuth, position",
    [(0, 90, (0, 2, 0)), (0, 180, (-2, 0, 0)), (90, 0, (0, 0, 2)), (30, -90, (0, -math.sqrt(3), 1))],
)
def test_elevation_and_azimuth(elevation, azimuth, position):
    angles = [torch.tensor([math.radians(a)]) for a in (elevation, azimuth)]
    close(spherical_to_cartesian(*angles, torch.tensor([2.0])), torch.tensor([position], dtype=torch.float32))


def test_places_read_back():
    """Angles of positions, also straight above and at the origin, which has none."""
    positions = torch.tensor([[0.0, 2, 0], [-2, 0, 0], [0, 0, 2], [math.sqrt(3) / 2, -1.5, 1], [0, 0, 0]])
    elevation, azimuth, distance = cartesian_to_spherical(positions)
    close(elevation.rad2deg(), [0.0, 0, 90, 30, 0])
    close(azimuth.rad2deg(), [90.0, 180, 0, -60, 0])
    close(distance, [2.0, 2, 2, 2, 0])


def test_the_batch_of_a_pose_says_where_it_is():
    batch = batch_of_poses(FRONT.repeat(2, 1, 1), RIGHT_ANGLE.repeat(2), unit_focal_directions(2, 2))
    for key, value in {"elevation": 0.0, "azimuth": 0.0, "camera_distances": 1.0}.items():
        close(batch[key], [value] * 2)
    close(batch["light_positions"], [[1.0, 0, 0]] * 2)
    close(batch["rays_d"][1, 0, 0], torch.tensor([-1.0, -0.5, 0.5]) / 1.5**0.5)
    close(batch["mvp_mtx"] @ torch.tensor([0.0, 0, 0.5, 1]), [[0.0, -0.5, 0.98019802, 1]] * 2)
    assert (batch["height"], batch["width"]) == (2, 2)


def test_rays_go_through_the_centres_of_pixels():
    """With 2 x 2 pixels at 90 degrees the focal length is 1 pixel: the first, at the top left, is at (-1/2, 1/2)."""
    directions = get_ray_directions(2, 2, 1.0)
    close(directions[0, 0], [-0.5, 0.5, -1.0])
    close(directions[1, 1], [0.5, -0.5, -1.0])
    origins, rays = get_rays(directions, FRONT, keepdim=True, normalize=False)
    close(origins[0, 0, 0], [1.0, 0, 0])
    close(rays[0, 0, 0], [-1.0, -0.5, 0.5])
    normalized = get_rays(directions, FRONT, keepdim=True)[1]
    close(normalized[0, 0, 0], torch.tensor([-1.0, -0.5, 0.5]) / 1.5**0.5)
    close(pixel_rays(FRONT, RIGHT_ANGLE, 2, 2)[1], normalized)


def test_the_projection_maps_the_frustum_to_the_cube_with_y_down():
    """At 90 degrees and twice as wide as high; near 1, far 3: depth 1 goes to -1, 3 to 1, 1.5 to 0."""
    matrix = get_projection_matrix(RIGHT_ANGLE, 2.0, 1.0, 3.0)[0]
    for point, expected in {
        (2.0, 1.0, -1.0): (1.0, -1.0, -1.0),
        (-6.0, -3.0, -3.0): (-1.0, 1.0, 1.0),
        (0.0, 0.0, -1.5): (0.0, 0.0, 0.0),
    }.items():
        clip = matrix @ torch.tensor([*point, 1.0])
        close(clip[:3] / clip[3], list(expected))


def test_a_point_on_a_pixels_ray_is_projected_into_that_pixel():
    mvp = get_mvp_matrix(FRONT, get_projection_matrix(RIGHT_ANGLE, 1.0, 0.01, 100.0))[0]
    clip = mvp @ torch.tensor([0.0, -0.5, 0.5, 1.0])  # one unit of depth along the ray of the first pixel
    close(clip[:2] / clip[3], [-0.5, -0.5])


def test_what_gaussian_rasterizers_ask():
    """Row vectors; the camera looks along +z with y down; depth goes to [0, 1]."""
    view, full, center = get_cam_info_gaussian(FRONT[0], math.pi / 2, math.pi / 2, 1.0, 3.0)
    close(torch.tensor([0.0, -0.5, 0.5, 1.0]) @ view, [-0.5, -0.5, 1.0, 1.0])
    close(center, [1.0, 0.0, 0.0])
    for depth, expected in {1.0: 0.0, 1.5: 0.5, 3.0: 1.0}.items():
        clip = torch.tensor([1.0 - depth, 0.0, 0.0, 1.0]) @ full
        close(clip[2] / clip[3], expected)


def config(**cfg):
    return parse_structured(RandomCameraDataModuleConfig, cfg)


def test_evaluation_orbits():
    """Validation does not repeat 360 degrees, the test's last view is its first again."""
    assert RandomCameraDataset(config(n_val_views=4), "val").azimuth.tolist() == [0, 90, 180, 270]
    assert RandomCameraDataset(config(n_test_views=5), "test").azimuth.tolist() == [0, 90, 180, 270, 360]


def test_random_cameras_cover_their_ranges():
    """One azimuth in each quarter; elevations by turns uniform in the angle and on the sphere."""
    torch.manual_seed(0)
    steady = {"camera_perturb": 0.0, "center_perturb": 0.0, "up_perturb": 0.0}
    data = RandomCameraIterableDataset(config(batch_size=4, height=2, width=2, elevation_range=(0, 90), **steady))
    batches = [data.collate(None) for _ in range(800)]
    azimuth = torch.stack([b["azimuth"] for b in batches])
    assert ((azimuth >= torch.tensor([-180.0, -90, 0, 90])) & (azimuth <= torch.tensor([-90.0, 0, 90, 180]))).all()
    # E of the sine: 2 / pi where the angle is uniform, 1/2 where the sine is. A batch has one coin for its four.
    sine = torch.stack([b["elevation"].deg2rad().sin().mean() for b in batches])
    assert sine.mean().item() == pytest.approx(0.5 * (2 / math.pi + 0.5), abs=4 * sine.std().item() / 800**0.5)
    for key in ("rays_o", "rays_d"):
        assert batches[0][key].shape == (4, 2, 2, 3)
    close(batches[0]["c2w"][:, :3, 2] * batches[0]["camera_distances"][:, None], batches[0]["camera_positions"])


def lights(strategy: str, **cfg) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of lights [3200, 3], and the cameras' directions from the origin."""
    torch.manual_seed(0)
    keys = {"batch_size": 64, "height": 2, "width": 2, "light_sample_strategy": strategy, "camera_perturb": 0.0}
    data = RandomCameraIterableDataset(config(**keys, **cfg))
    batches = [data.collate(None) for _ in range(50)]
    placed, cameras = (torch.cat([b[key] for b in batches]) for key in ("light_positions", "camera_positions"))
    return placed, torch.nn.functional.normalize(cameras, dim=-1)


def test_magic3ds_lights_stand_within_60_degrees_of_the_camera():
    """Uniform in that angle, and 0.8 to 1.5 from the origin."""
    placed, toward = lights("magic3d")
    distance = placed.norm(dim=-1)
    assert 0.8 <= distance.min() < 0.81 and 1.49 < distance.max() <= 1.5
    angle = ((placed * toward).sum(-1) / distance).clamp(-1, 1).acos().rad2deg()
    assert 59.5 < angle.max() < 60.01 and angle.mean().item() == pytest.approx(30, abs=5 * 17.4 / 3200**0.5)


def test_dreamfusions_lights_are_drawn_around_the_camera():
    """The camera's place plus a normal one, brought to a distance of its own (DreamFusion, section 3.2)."""
    placed, toward = lights("dreamfusion", light_position_perturb=0.0)
    close(torch.nn.functional.normalize(placed, dim=-1), toward)
    placed, _ = lights("dreamfusion", light_position_perturb=1e4)  # then the camera's place does not matter
    direction = torch.nn.functional.normalize(placed, dim=-1)
    assert direction.mean(0).abs().max() < 5 / (3 * 3200) ** 0.5  # of unit vectors that point anywhere
    assert direction.square().mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
