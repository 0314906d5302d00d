"""Outlines: coverage by hand, gradients by finite differences and by fitting shapes to masks, Warp against torch."""

import math

import pytest
import torch

from tests.ops.meshes import FOVY, camera_batch, flat_camera, icosphere, join, rectangle, soup
from tests.ops.running import skips_without
from threestudio.ops.mesh_antialias import antialias, mesh_edges
from threestudio.ops.mesh_rasterization import available_backends, interpolate, rasterize

BACKENDS = ["torch", "warp"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


need = skips_without(available_backends)


def mask(v_pos, faces, mvp, height, width, backend="auto"):
    """Antialiased silhouettes [B, H, W]."""
    fragments = rasterize(v_pos, faces, mvp, height, width, backend)
    seen = (fragments.face >= 0).to(v_pos)[..., None]
    return antialias(seen, fragments, v_pos, faces, mvp, backend)[..., 0]


def test_edges_of_a_tetrahedron_a_fin_and_a_repeated_corner():
    faces = torch.tensor([[0, 1, 2], [0, 3, 1], [1, 3, 2], [2, 3, 0], [1, 0, 4], [2, 2, 3]])
    edges = mesh_edges(faces, 5)
    assert edges.vertices.tolist() == [[0, 1], [0, 2], [0, 3], [0, 4], [1, 2], [1, 3], [1, 4], [2, 2], [2, 3]]
    assert edges.first.diff().tolist() == [3, 2, 2, 1, 2, 2, 1, 1, 4]
    on_first = sorted(zip(edges.faces[:3].tolist(), edges.turned[:3].tolist()))
    assert on_first == [(0, False), (1, True), (4, True)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("edge", [3.0, 3.2, 3.5, 3.71, 3.999, 4.0])
def test_coverage_of_an_upright_edge_is_exact(backend, edge):
    """A rectangle from beyond the left side to x = edge, in pixels of an image of 8, in front of and behind nothing."""
    need(backend)
    x = edge / 4 - 1
    for transposed in (False, True):
        v_pos, faces = rectangle((-2, -2), (x, 2))
        if transposed:
            v_pos = v_pos[:, [1, 0, 2]]
        coverage = mask(v_pos.requires_grad_(), faces, flat_camera(), 8, 8, backend)[0]
        coverage = coverage.T if transposed else coverage
        expected = (edge - torch.arange(8.0)).clamp(0, 1)
        torch.testing.assert_close(coverage, expected.expand(8, 8), atol=1e-5, rtol=0)
        (grad,) = torch.autograd.grad(coverage.sum(), v_pos)
        moved = grad[[1, 2], 1 if transposed else 0].sum()
        # 8 rows of 4 pixels a unit; at a whole number, the pixel's corner, both neighbours give the same.
        assert moved.item() == pytest.approx(32.0, rel=1e-4)


@pytest.mark.parametrize("angle", [10, 33, 45, 50, 70, 80])
def test_area_and_its_derivative_of_a_slanting_edge(angle):
    """A half plane at any angle: moving it along its normal by d changes the area by d times its length."""
    angle = math.radians(angle)
    normal, along = (
        torch.tensor([math.cos(angle), math.sin(angle), 0]),
        torch.tensor([-math.sin(angle), math.cos(angle), 0]),
    )
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    size = 40
    # Measured within |x| < 0.8 and |y| < 0.5, whose corners the line keeps away from.
    length = 2 * min(0.8 / math.sin(angle), 0.5 / math.cos(angle))
    values, slopes = [], []
    for offset in torch.linspace(-0.05, 0.05, 20):  # over two pixels
        offset = offset.clone().requires_grad_()
        corners = [
            -4 * normal - 4 * along,
            offset * normal - 4 * along,
            offset * normal + 4 * along,
            -4 * normal + 4 * along,
        ]
        area = mask(torch.stack(corners), faces, flat_camera(), size, size)[:, 10:-10, 4:-4].sum() * (2 / size) ** 2
        values.append(area.item())
        slopes.append(torch.autograd.grad(area, offset)[0].item())
    assert (values[-1] - values[0]) / 0.1 == pytest.approx(length, rel=0.02)  # a pixel at the ends of the line is 0.025
    assert sum(slopes) / len(slopes) == pytest.approx(length, rel=0.02)
    assert max(slopes) < 1.15 * length and min(slopes) > 0.85 * length


@pytest.mark.parametrize("subdivisions", [1, 3, 5])
def test_area_of_a_sphere_and_its_derivative_in_the_radius(subdivisions):
    """Faces much larger and much smaller than pixels (20,480 on 600 pixels)."""
    need("warp")
    size, distance, r = 40, 2.5, 0.6
    v_pos, faces = icosphere(subdivisions)
    # The outline of the polyhedron is inside the sphere's: compare with what its own vertices span.
    batch = camera_batch(4, size, size, distance)
    radius = torch.tensor(r, requires_grad=True)
    area = mask(v_pos * radius, faces, batch["mvp_mtx"], size, size).sum((1, 2)).mean()
    (slope,) = torch.autograd.grad(area, radius)
    focal = size / 2 / math.tan(FOVY / 2)
    expected = math.pi * (focal * r) ** 2 / (distance**2 - r**2)
    expected_slope = 2 * expected / r * distance**2 / (distance**2 - r**2)
    tolerance = {1: 0.15, 3: 0.015, 5: 0.005}[subdivisions]
    assert area.item() == pytest.approx(expected, rel=tolerance)
    assert slope.item() == pytest.approx(expected_slope, rel=tolerance)


@pytest.mark.parametrize("subdivisions", [1, 3])
def test_gradients_along_a_motion_add_up_to_the_finite_difference(subdivisions):
    """Of weighted masks, over two pixels of shift along each axis and of growth, on coarse and fine meshes.

    Added up, because the derivative of a picture of samples is one of pieces: between two of them a crossing passes
    from one edge to the next, whose slant is another.
    """
    size, n = 24, 16
    weights = torch.linspace(0, 1, size)[:, None] * torch.linspace(1, 0.2, size) ** 2
    v_pos, faces = icosphere(subdivisions)
    v_pos = v_pos * torch.tensor([0.7, 0.5, 0.4])
    mvp = camera_batch(2, size, size)["mvp_mtx"]

    def loss(parameters):
        return (mask(v_pos * (1 + parameters[3]) + parameters[:3], faces, mvp, size, size) * weights).sum()

    added, difference = torch.zeros(4), torch.zeros(4)
    for axis in range(4):
        path = torch.zeros(n, 4)
        path[:, axis] = 0.2 * ((torch.arange(n) + 0.5) / n - 0.5)  # a pixel is 0.1 wide
        for parameters in path.requires_grad_().unbind(0):
            added[axis] += torch.autograd.grad(loss(parameters), parameters)[0][axis] * 0.2 / n
        end = torch.eye(4)[axis] * 0.1
        difference[axis] = loss(end) - loss(-end)
    assert (added - difference).abs().max() < 0.02 * difference.abs().max(), (added, difference)


def test_gradients_of_single_vertices_are_those_of_the_area_on_average():
    """Over positions of the image's grid, which the constant weights of rows and columns need."""
    faces = torch.tensor([[0, 1, 2]])
    v_pos = torch.tensor([[-0.6, -0.5, 0.0], [0.7, -0.2, 0.0], [0.1, 0.65, 0.0]])
    size, n = 48, 24
    shifts = torch.zeros(n, 3)
    shifts[:, :2] = torch.rand(n, 2, generator=torch.Generator().manual_seed(0)) * 2 / size
    v = v_pos.clone().requires_grad_()
    area = sum(mask(v + shift, faces, flat_camera(), size, size).sum() for shift in shifts) / n * (2 / size) ** 2
    (grad,) = torch.autograd.grad(area, v)
    # Half of |(b - a) x (c - a)|: its derivative in a corner is half the opposite edge, turned outwards.
    opposite = v_pos.roll(-1, 0) - v_pos.roll(1, 0)
    exact = 0.5 * torch.stack([opposite[:, 1], -opposite[:, 0]], -1)
    exact = exact * (exact[0] @ v_pos[0, :2]).sign()
    # A tip thinner than a pixel is not seen: a little less than exact.
    assert (grad[:, :2] - exact).abs().max() < 0.03
    assert (grad[:, 2] == 0).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["sphere", "soup", "pair", "near"])
def test_warp_agrees_with_the_torch_reference(name, device):
    need("warp", device)
    meshes = {
        "sphere": icosphere(3, 0.9),
        "soup": soup(40),
        "pair": join(icosphere(2, 0.8), soup(10, seed=1)),
        "near": soup(20, seed=2, size=3.0),  # through the near plane, behind the camera, beyond all sides
    }
    v_pos, faces = (x.to(device) for x in meshes[name])
    mvp = camera_batch(2, 20, 26, distance=1.5)["mvp_mtx"].to(device)
    results = []
    for backend in BACKENDS:
        v = v_pos.clone().requires_grad_()
        fragments = rasterize(v.detach(), faces, mvp, 20, 26, "warp")  # the same for both: only outlines are compared
        image = interpolate(v.detach().sin(), faces, fragments, "torch").requires_grad_()
        out = antialias(image, fragments, v, faces, mvp, backend)
        results.append([out.detach(), *torch.autograd.grad((out * torch.cos(out)).sum(), [v, image])])
    assert (results[0][0] - image).abs().max() > 0.05
    for a, b in zip(*results):
        # A crossing within rounding of a pixel's centre may count for the pair on its other side.
        different = (a - b).abs() > 1e-3 * (1 + a.abs())
        assert different.float().mean() < 0.01


def test_self_occlusion_moves_colours():
    """A ball before a wall: all pixels are covered, and its outline still has a gradient."""
    ball, faces = icosphere(3, 0.4)
    wall = rectangle((-3, -3), (3, 3), 0.9)
    shift = torch.zeros(3, requires_grad=True)
    v_pos, all_faces = join((ball * torch.tensor([1, 1, 0.5]) + shift, faces), wall)
    fragments = rasterize(v_pos, all_faces, flat_camera(), 32, 32)
    assert (fragments.face >= 0).all()
    color = (torch.arange(len(v_pos)) < len(ball)).float()[:, None]  # the ball is white
    image = antialias(interpolate(color, all_faces, fragments), fragments, v_pos, all_faces, flat_camera())[0, ..., 0]
    right = image[:, 16:].sum()
    (grad,) = torch.autograd.grad(right, shift)
    # The strip that comes over the middle: as high as the ball (0.8 units of 16 pixels), 16 pixels a unit.
    assert grad[0].item() == pytest.approx(0.8 * 16 * 16, rel=0.03)
    assert abs(grad[1].item()) < 0.02 * grad[0].item() and abs(grad[2].item()) < 0.02 * grad[0].item()


def test_what_is_hidden_has_no_outline():
    front, back = rectangle((-0.9, -0.9), (0.9, 0.9), -0.5), rectangle((-0.3, -0.4), (0.5, 0.2), 0.5)
    v_pos, faces = join(front, back)
    v_pos.requires_grad_()
    image = torch.rand(1, 16, 16, 2, generator=torch.Generator().manual_seed(0))
    fragments = rasterize(v_pos, faces, flat_camera(), 16, 16)
    out = antialias(image, fragments, v_pos, faces, flat_camera())
    assert torch.equal(out[0, 2:-2, 2:-2], image[0, 2:-2, 2:-2])
    (grad,) = torch.autograd.grad(out.sum(), v_pos)
    assert (grad[4:] == 0).all() and (grad[:4] != 0).any()


def test_blends_are_convex_and_the_inside_stays():
    v_pos, faces = join(icosphere(2, 0.5), soup(30, seed=4, size=0.1))  # some smaller than a pixel
    mvp = camera_batch(3, 24, 24)["mvp_mtx"]
    fragments = rasterize(v_pos, faces, mvp, 24, 24)
    image = torch.rand(3, 24, 24, 4, generator=torch.Generator().manual_seed(1))
    out = antialias(image, fragments, v_pos, faces, mvp)
    around = torch.nn.functional.max_pool2d(image.permute(0, 3, 1, 2), 3, 1, 1).permute(0, 2, 3, 1)
    below = -torch.nn.functional.max_pool2d(-image.permute(0, 3, 1, 2), 3, 1, 1).permute(0, 2, 3, 1)
    assert (out <= around + 1e-6).all() and (out >= below - 1e-6).all()
    constant = antialias(torch.full_like(image, 0.3), fragments, v_pos, faces, mvp)
    torch.testing.assert_close(constant, torch.full_like(image, 0.3))


def test_an_empty_view_keeps_the_graph():
    v_pos, faces = icosphere(1, 0.1)
    v_pos = (v_pos + 50.0).requires_grad_()
    out = mask(v_pos, faces, camera_batch(1, 8, 8)["mvp_mtx"], 8, 8)
    out.sum().backward()
    assert (out == 0).all() and (v_pos.grad == 0).all()


def fit(parameters, vertices_of, faces, target, mvp, size, steps, learning_rate):
    """Adam on the squared error of masks alone, the rate falling to nothing."""
    optimizer = torch.optim.Adam([parameters], lr=learning_rate, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, learning_rate * 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        (mask(vertices_of(parameters), faces, mvp, size, size) - target).square().mean().backward()
        optimizer.step()
        schedule.step()
    return parameters.detach()


@pytest.mark.parametrize("subdivisions", [2, 4])
def test_a_spheres_radius_is_found_from_masks_alone(subdivisions):
    v_pos, faces = icosphere(subdivisions)
    size = 24
    mvp = camera_batch(2, size, size)["mvp_mtx"]
    target = mask(0.62 * v_pos, faces, mvp, size, size).detach()
    found = fit(torch.tensor(0.4, requires_grad=True), lambda r: r * v_pos, faces, target, mvp, size, 40, 0.03)
    assert found.item() == pytest.approx(0.62, abs=0.002)


def test_a_meshs_translation_is_found_from_masks_alone():
    v_pos, faces = icosphere(2)
    v_pos = v_pos * torch.tensor([0.6, 0.4, 0.3])
    size = 24
    mvp = camera_batch(3, size, size)["mvp_mtx"]
    true = torch.tensor([0.12, -0.2, 0.15])
    target = mask(v_pos + true, faces, mvp, size, size).detach()
    found = fit(torch.zeros(3, requires_grad=True), lambda shift: v_pos + shift, faces, target, mvp, size, 50, 0.03)
    assert (found - true).abs().max() < 0.003
