"""Signed distances against geometry done by hand, and against the nearest of many points on the surface."""

import math

import pytest
import torch
from torch import Tensor
from turboprop.world.primitives import (
    box,
    capsule,
    cone,
    convex_prism,
    cylinder,
    intersect,
    sphere,
    subtract,
    torus,
)

SPACING = 0.012  # of the points on a surface, world units
TRAPEZOID = [(-0.5, -0.4), (0.3, -0.4), (0.6, 0.5), (-0.2, 0.5)]  # counter-clockwise


def points_of(rows: list) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def random_points(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, generator=generator, dtype=torch.float64) * 2.4 - 1.2


def steps(low: float, high: float) -> Tensor:
    return torch.linspace(low, high, max(2, math.ceil((high - low) / SPACING) + 1), dtype=torch.float64)


def around(profile: Tensor, start: list, end: list) -> Tensor:
    """The surface that a profile [K, 2] of (radius, height along the axis) sweeps around an axis: [N, 3]."""
    a, b = points_of(start), points_of(end)
    direction = (b - a) / (b - a).norm()
    helper = points_of([1.0, 0, 0]) if direction[0].abs() < 0.9 else points_of([0, 1.0, 0])
    u = torch.linalg.cross(direction, helper)
    u = u / u.norm()
    v = torch.linalg.cross(direction, u)
    angle = steps(0, 2 * math.pi / 0.7)[:, None] * 0.7  # radii stay below 0.7
    ring = angle.cos() * u + angle.sin() * v  # [A, 3]
    radius, height = profile[:, None, :1], profile[:, None, 1:]
    return (a + radius * ring + height * direction).reshape(-1, 3)


def segment(p: tuple, q: tuple) -> Tensor:
    """Points of a segment of the plane: [K, 2]."""
    p, q = points_of(list(p)), points_of(list(q))
    return p + steps(0, float((q - p).norm()))[:, None] / (q - p).norm() * (q - p)


def cone_surface() -> Tensor:
    height = math.sqrt(0.3**2 + 0.2**2 + 0.9**2)
    profile = [segment((0, 0), (0.5, 0)), segment((0.5, 0), (0.2, height)), segment((0.2, height), (0, height))]
    return around(torch.cat(profile), [-0.1, 0.1, -0.4], [0.2, -0.1, 0.5])


def cylinder_surface() -> Tensor:
    profile = [segment((0, 0), (0.45, 0)), segment((0.45, 0), (0.45, 0.8)), segment((0.45, 0.8), (0, 0.8))]
    return around(torch.cat(profile), [0, 0, -0.3], [0, 0, 0.5])


def torus_surface() -> Tensor:
    angle = steps(0, 2 * math.pi * 0.2) / 0.2
    profile = torch.stack([0.5 + 0.15 * angle.cos(), 0.15 * angle.sin()], -1)
    return around(profile, [0.1, -0.1, 0.2], [0.1, 0.9, 0.2])


def prism_surface() -> Tensor:
    outline = torch.cat([segment(p, q) for p, q in zip(TRAPEZOID, TRAPEZOID[1:] + TRAPEZOID[:1])])
    y = steps(0.1 - 0.35, 0.1 + 0.35)
    sides = torch.stack(
        [outline[:, None, 0].expand(-1, len(y)), y.expand(len(outline), -1), outline[:, None, 1].expand(-1, len(y))], -1
    )
    x, z = torch.meshgrid(steps(-0.5, 0.6), steps(-0.4, 0.5), indexing="ij")
    inside = inside_trapezoid(x, z)
    caps = [torch.stack([x[inside], torch.full_like(x[inside], 0.1 + s * 0.35), z[inside]], -1) for s in (-1, 1)]
    return torch.cat([sides.reshape(-1, 3), *caps])


def inside_trapezoid(x: Tensor, z: Tensor) -> Tensor:
    share = (z + 0.4) / 0.9
    return (z > -0.4) & (z < 0.5) & (x > -0.5 + 0.3 * share) & (x < 0.3 + 0.3 * share)


def inside_cone(p: Tensor) -> Tensor:
    a, b = points_of([-0.1, 0.1, -0.4]), points_of([0.2, -0.1, 0.5])
    share = (p - a) @ (b - a) / (b - a).dot(b - a)
    radial = (p - a - share[:, None] * (b - a)).norm(dim=-1)
    return (share > 0) & (share < 1) & (radial < 0.5 - 0.3 * share)


SOLIDS = {
    "cone": (
        cone((-0.1, 0.1, -0.4), (0.2, -0.1, 0.5), 0.5, 0.2),
        cone_surface,
        inside_cone,
    ),
    "cylinder": (
        cylinder((0, 0, -0.3), (0, 0, 0.5), 0.45),
        cylinder_surface,
        lambda p: (p[:, :2].norm(dim=-1) < 0.45) & (p[:, 2] > -0.3) & (p[:, 2] < 0.5),
    ),
    "torus": (
        torus((0.1, -0.1, 0.2), 1, 0.5, 0.15),
        torus_surface,
        lambda p: (torch.hypot(p[:, 0] - 0.1, p[:, 2] - 0.2) - 0.5) ** 2 + (p[:, 1] + 0.1) ** 2 < 0.15**2,
    ),
    "prism": (
        convex_prism(TRAPEZOID, 1, 0.1, 0.35),
        prism_surface,
        lambda p: inside_trapezoid(p[:, 0], p[:, 2]) & ((p[:, 1] - 0.1).abs() < 0.35),
    ),
}


@pytest.mark.parametrize("name", SOLIDS)
def test_distance_is_that_to_the_nearest_of_many_surface_points(name):
    distance, surface, is_inside = SOLIDS[name]
    points, samples = random_points(600), surface()
    brute = torch.cdist(points, samples).amin(1)
    value = distance(points)
    assert torch.equal(value < 0, is_inside(points))
    assert int(is_inside(points).sum()) >= 10  # both sides are tried
    slack = brute - value.abs()  # the nearest sample is at most a spacing's diagonal further than the surface
    assert float(slack.min()) > -1e-9 and float(slack.max()) < SPACING
    assert float(distance(samples).abs().max()) < 1e-9


def test_sphere():
    points = points_of([[1, 2, 3], [1, 2, 3.5], [4, 6, 3], [1, 2, 2]])
    assert torch.allclose(sphere((1, 2, 3), 0.5)(points), points_of([-0.5, 0.0, 4.5, 0.5]))


def test_box_faces_edges_corners_and_inside():
    points = points_of([[3, 0, 0], [4, 6, 0], [2, 3, 4], [0, 0, 0], [0.5, 0, 0], [0, 1.9, 0], [1, 2, 3]])
    expected = points_of([2, 5, math.sqrt(3), -1, -0.5, -0.1, 0])
    assert torch.allclose(box((0, 0, 0), (1, 2, 3))(points), expected)
    shifted = box((0.3, -0.2, 0.1), (1, 2, 3))
    assert torch.allclose(shifted(points + points_of([0.3, -0.2, 0.1])), expected)


def test_rounding_keeps_faces_and_takes_corners():
    rounded = box((0, 0, 0), (1, 1, 1), 0.2)
    points = points_of([[1, 0, 0], [2, 0, 0], [1, 1, 1], [1, 1, 0]])
    expected = points_of([0, 1, 0.2 * (math.sqrt(3) - 1), 0.2 * (math.sqrt(2) - 1)])
    assert torch.allclose(rounded(points), expected, atol=1e-12)
    rim = cylinder((0, 0, 0), (0, 0, 1), 0.5, 0.1)
    points = points_of([[0.5, 0, 0.5], [0, 0, 1], [0.5, 0, 1]])
    assert torch.allclose(rim(points), points_of([0, 0, 0.1 * (math.sqrt(2) - 1)]), atol=1e-12)


def test_capsule():
    points = points_of([[0.5, 0, 0.2], [-1, 0, 0], [2, 1, 0], [0.5, 0, 0]])
    expected = points_of([-0.1, 0.7, math.sqrt(2) - 0.3, -0.3])
    assert torch.allclose(capsule((0, 0, 0), (1, 0, 0), 0.3)(points), expected)


def test_cone_and_torus_at_chosen_points():
    frustum = cone((0, 0, 0), (0, 0, 2), 1.0, 1.0)  # a cylinder
    points = points_of([[2, 0, 1], [0, 0, 3], [2, 0, 3], [0, 0, 1], [0, 0.9, 1]])
    assert torch.allclose(frustum(points), points_of([1, 1, math.sqrt(2), -1, -0.1]))
    ring = torus((0, 0, 0), 2, 1.0, 0.25)
    points = points_of([[1, 0, 0], [0, 0, 0], [0, 1.25, 0], [2, 0, 0], [0, -1, 1]])
    assert torch.allclose(ring(points), points_of([-0.25, 0.75, 0, 0.75, 0.75]))


EXACT = {
    "sphere": sphere((0.1, 0, 0), 0.5),
    "box": box((0, 0.1, 0), (0.5, 0.3, 0.4)),
    "rounded box": box((0, 0.1, 0), (0.5, 0.3, 0.4), 0.1),
    "capsule": capsule((-0.3, 0, 0), (0.3, 0.2, 0.1), 0.2),
    "rounded cylinder": cylinder((0, 0, -0.3), (0.2, 0, 0.3), 0.4, 0.05),
    **{name: solid[0] for name, solid in SOLIDS.items()},
}


@pytest.mark.parametrize("name", EXACT)
def test_gradient_has_unit_length(name):
    points = random_points(2000, seed=1).requires_grad_()
    (gradient,) = torch.autograd.grad(EXACT[name](points).sum(), points)
    assert torch.allclose(gradient.norm(dim=-1), torch.ones(2000, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_prism_lies_along_its_axis(axis):
    prism = convex_prism([(-0.2, -0.1), (0.2, -0.1), (0.2, 0.1), (-0.2, 0.1)], axis, 0.3, 0.5)
    half, center = [0.0] * 3, [0.0] * 3
    half[axis], center[axis] = 0.5, 0.3
    first, second = (i for i in range(3) if i != axis)
    half[first], half[second] = 0.2, 0.1
    points = random_points(500, seed=axis)
    assert torch.allclose(prism(points), box(center, half)(points), atol=1e-12)


@pytest.mark.parametrize("combine, wanted", [(intersect, lambda a, b: a & b), (subtract, lambda a, b: a & ~b)])
def test_combined_solids_have_the_right_inside_and_never_overstate_the_distance(combine, wanted):
    first, second = sphere((0, 0, 0), 0.8), box((0.3, 0, 0), (0.4, 0.5, 0.3))
    solid, points = combine(first, second), random_points(4000, seed=2)
    value = solid(points)
    inside = wanted(first(points) < 0, second(points) < 0)
    assert torch.equal(value < 0, inside)
    assert 0 < int(inside.sum()) < len(points)
    across = torch.cdist(points[~inside][:400], points[inside])  # any point of the other side is no nearer
    assert bool((value[~inside][:400] <= across.amin(1) + 1e-12).all())
    across = torch.cdist(points[inside][:400], points[~inside])
    assert bool((-value[inside][:400] <= across.amin(1) + 1e-12).all())
