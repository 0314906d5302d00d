"""Gaussians on the image, by hand: covariance, the guard band, what is opaque enough, blending."""

import math

import pytest
import torch

from threestudio.ops.gaussian_rasterization import rasterize_gaussians
from threestudio.ops.gaussian_rasterization.projection import intrinsics_from_fov, project_gaussians, rotation_matrices
from threestudio.ops.gaussian_rasterization.projection_warp import project_gaussians_warp

SIZE = 200  # pixels; at 90 degrees the focal length is 100 of them, and tan(fov / 2) is 1
LOOKS_AHEAD = torch.diag(torch.tensor([1.0, -1, -1, 1]))  # c2w: camera axes are the world's, looking along +z
FOCAL = torch.tensor([[100.0, 100, 100, 100]])
DILATION = 0.3
PROJECTIONS = pytest.mark.parametrize("project", [project_gaussians, project_gaussians_warp])


def projected(project, mean, scale, quaternion=(1.0, 0, 0, 0), opacity=0.9):
    """conic, mean on the image, radius, visible of one Gaussian."""
    scales = torch.tensor(scale).expand(3) if isinstance(scale, float) else torch.tensor(scale)
    out = project(
        torch.tensor([mean]), torch.tensor([quaternion]), scales[None].contiguous(), torch.tensor([opacity]),
        LOOKS_AHEAD[None], FOCAL, SIZE, SIZE, 0.01,
    )  # fmt: skip
    return out.conics[0, 0], out.means2d[0, 0].tolist(), out.radii[0, 0].item(), bool(out.visible[0, 0])


def covariance(conic: torch.Tensor) -> list[float]:
    """xx, xy, yy in square pixels, from the inverse."""
    a, b, c = conic.double().tolist()
    determinant = a * c - b * b
    return [c / determinant, -b / determinant, a / determinant]


def test_the_focal_length_of_a_field_of_view():
    assert intrinsics_from_fov(math.pi / 2, SIZE, SIZE).tolist() == pytest.approx([100, 100, 100, 100])
    focal = 50 / math.tan(math.radians(30))
    assert intrinsics_from_fov(math.radians(60), 100, 200).tolist() == pytest.approx([focal, focal, 100, 50])


@PROJECTIONS
def test_on_the_axis(project):
    """0.1 wide at depth 2: 5 pixels, so 25.3 square pixels with the dilation."""
    conic, mean, radius, visible = projected(project, [0.0, 0, 2], 0.1)
    assert covariance(conic) == pytest.approx([25 + DILATION, 0, 25 + DILATION], rel=1e-5, abs=1e-4)
    assert mean == pytest.approx([100, 100]) and visible
    assert radius == pytest.approx(3 * 25.3**0.5, rel=1e-5)


@PROJECTIONS
def test_beside_the_axis(project):
    """J = (f / z) (1, 0, -u; 0, 1, -v) with u = x / z and v = y / z (Zwicker et al. 2002), so J J^T has
    (f / z)^2 times 1 + u^2, u v, 1 + v^2."""
    conic, mean, _, _ = projected(project, [1.0, -0.5, 2], 0.1)
    u, v = 0.5, -0.25
    expected = [25 * (1 + u * u) + DILATION, 25 * u * v, 25 * (1 + v * v) + DILATION]
    assert covariance(conic) == pytest.approx(expected, rel=1e-5, abs=1e-4)
    assert mean == pytest.approx([150, 75])


@PROJECTIONS
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_far_outside_j_is_taken_at_1_3_times_the_tangent(project, side):
    """x / z is 2, beyond 1.3 tan(fov / 2): variance (f s / z)^2 (1 + 1.3^2); the mean is where it is."""
    conic, mean, _, visible = projected(project, [side * 4.0, 0, 2], 0.4)
    assert visible and mean == pytest.approx([100 + side * 200, 100])
    assert covariance(conic) == pytest.approx([400 * (1 + 1.69) + DILATION, 0, 400 + DILATION], rel=1e-4, abs=1e-2)
    inside, _, _, _ = projected(project, [side * 2.5, 0, 2], 0.4)  # 1.25 is still its own
    assert covariance(inside)[0] == pytest.approx(400 * (1 + 1.25**2) + DILATION, rel=1e-4)


@PROJECTIONS
def test_beyond_the_guard_band_the_shape_does_not_hang_on_the_mean_sideways(project):
    mean = torch.tensor([[4.0, 0, 2]], requires_grad=True)
    out = project(
        mean, torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.4), torch.tensor([0.9]), LOOKS_AHEAD[None], FOCAL,
        SIZE, SIZE, 0.01,
    )  # fmt: skip
    out.conics[0, 0, 0].backward()
    # 1 / (1.3^2 + 1) / (f s / z)^2 + ...: conic a = 1 / (40^2 2.69 / z^2 + 0.3), of z alone
    xx = 1600 * 2.69 / 4 + DILATION
    assert mean.grad[0].tolist() == pytest.approx([0, 0, 2 * 1600 * 2.69 / 8 / xx**2], rel=1e-3, abs=1e-9)


@PROJECTIONS
def test_turned_by_a_quaternion(project):
    """90 degrees about z, wxyz: the long x axis lies along y."""
    half = 0.5**0.5
    conic, _, radius, _ = projected(project, [0.0, 0, 2], [0.2, 0.1, 0.05], (half, 0.0, 0.0, half))
    assert covariance(conic) == pytest.approx([25 + DILATION, 0, 100 + DILATION], rel=1e-5, abs=1e-3)
    assert radius == pytest.approx(3 * 100.3**0.5, rel=1e-5)
    turned = rotation_matrices(torch.tensor([[half, 0.0, 0.0, half]]))[0]
    torch.testing.assert_close(turned, torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), atol=1e-6, rtol=0)


@PROJECTIONS
def test_less_than_one_255th_is_nothing(project):
    assert projected(project, [0.0, 0, 2], 0.1, opacity=1.01 / 255)[3]
    assert not projected(project, [0.0, 0, 2], 0.1, opacity=0.99 / 255)[3]
    assert not projected(project, [0.0, 0, 0.005], 0.1)[3]  # nearer than `near`


@pytest.mark.parametrize("backend", ["torch", "warp"])
def test_two_gaussians_blended(backend):
    """alpha = opacity exp(-q / 2), at most 0.99; the nearer hides the farther (Kerbl et al. 2023, equation 3)."""
    means = torch.tensor([[0.0, 0, 4], [0.0, 0, 2]])
    scales = torch.tensor([[0.2] * 3, [0.1] * 3])  # both 25.3 square pixels
    image = rasterize_gaussians(
        means, torch.tensor([[1.0, 0, 0, 0]] * 2), scales, torch.tensor([1.0, 0.5]), torch.eye(3)[:2], LOOKS_AHEAD,
        FOCAL[0], SIZE, SIZE, background=torch.tensor([0.0, 0.0, 1.0]), backend=backend,
    )  # fmt: skip
    for row, column in ((100, 100), (103, 96)):
        q = ((column + 0.5 - 100) ** 2 + (row + 0.5 - 100) ** 2) / 25.3
        near, far = 0.5 * math.exp(-q / 2), min(0.99, math.exp(-q / 2))
        expected = [(1 - near) * far, near, (1 - near) * (1 - far)]
        assert image.color[row, column].tolist() == pytest.approx(expected, rel=1e-4)
        assert image.opacity[row, column].item() == pytest.approx(1 - (1 - near) * (1 - far), rel=1e-4)
        assert image.depth[row, column].item() == pytest.approx(near * 2 + (1 - near) * far * 4, rel=1e-4)
