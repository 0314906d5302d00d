"""Renders of a ball against closed forms, and what pictures are made of."""

import math

import pytest
import torch
from turboprop.world.cameras import orbit_c2w, pixel_rays
from turboprop.world.objects import ACCENT, COLORS, DETAIL_COLOR, KINDS, MAIN, Kind
from turboprop.world.primitives import sphere
from turboprop.world.render import composite, render, role_colors, shaded_coverage, shading, surface_view, trace

RADIUS, SIZE, FOVY = 0.55, 64, math.radians(40.0)
BALL = Kind("ball", "a {} half", ((MAIN, sphere((0, 0, 0), RADIUS)),), has_front=False)
PAIR = Kind("pair", "a {} half", ((MAIN, sphere((0, 0.4, 0), 0.3)), (ACCENT, sphere((0, -0.4, 0), 0.3))), False)


def cameras(*angles: tuple[float, float], distance: float = 2.7) -> tuple[torch.Tensor, torch.Tensor]:
    elevation, azimuth = torch.tensor(angles).T
    return orbit_c2w(elevation, azimuth, torch.full((len(angles),), distance)), torch.full((len(angles),), FOVY)


def exact_sphere(origins: torch.Tensor, directions: torch.Tensor, center: torch.Tensor, radius: float) -> torch.Tensor:
    """Distance along each ray to a sphere, infinite where it misses."""
    o = origins - center
    half_b = (o * directions).sum(-1)
    root = half_b.square() - o.square().sum(-1) + radius**2
    return torch.where(root > 0, -half_b - root.clamp_min(0).sqrt(), torch.inf)


def test_depth_and_normal_of_a_ball():
    c2w, fovy = cameras((0, 0), (35, 130), (-20, -60))
    view = surface_view(BALL, c2w, fovy, SIZE, SIZE)
    origins, directions = pixel_rays(c2w, fovy, SIZE, SIZE)
    exact = exact_sphere(origins, directions, torch.zeros(3), RADIUS)
    points = origins + exact[..., None] * directions
    facing = -(points / RADIUS * directions).sum(-1)
    steady = torch.isfinite(exact) & (facing > 0.3)  # a ray that grazes stops earlier
    assert bool(view.mask[steady].all())
    error = exact[steady] - view.depth[steady]  # stops at most the tolerance, 1e-3, before the surface
    assert float(error.min()) > -1e-4 and float(error.max()) < 1e-3 / 0.3 + 1e-4
    assert float((view.normal - points / RADIUS)[steady].abs().max()) < 0.01
    assert bool((view.depth[~view.mask] == 0).all()) and bool((view.normal[~view.mask] == 0).all())


def test_silhouette_of_a_ball():
    """Seen from distance d, a ball of radius r fills a cone of half angle asin(r / d)."""
    c2w, fovy = cameras((0, 0), (50, 70))
    coverage = shaded_coverage(surface_view(BALL, c2w, fovy, 2 * SIZE, 2 * SIZE), 2)[:, 3]
    focal = 0.5 * SIZE / math.tan(FOVY / 2)
    expected = math.pi * (focal * math.tan(math.asin(RADIUS / 2.7))) ** 2
    assert coverage.sum((1, 2)).tolist() == pytest.approx([expected] * 2, rel=0.01)


def test_trace_from_anywhere():
    center = torch.tensor([0.2, -0.1, 0.3])
    ball = Kind("ball", "a {} half", ((MAIN, sphere(center.tolist(), 0.4)),), False)
    generator = torch.Generator().manual_seed(0)
    origins = torch.nn.functional.normalize(torch.randn(500, 3, generator=generator), dim=-1) * 2
    targets = center + 0.35 * torch.nn.functional.normalize(torch.randn(500, 3, generator=generator), dim=-1)
    directions = torch.nn.functional.normalize(targets - origins, dim=-1)
    found = trace(ball, origins, directions)
    assert bool(torch.isfinite(found).all())
    assert float((found - exact_sphere(origins, directions, center, 0.4)).abs().max()) < 5e-3
    assert bool(torch.isinf(trace(ball, origins, -directions)).all())  # looking away


def test_roles_of_two_balls():
    """From the front +y is at the right."""
    view = surface_view(PAIR, *cameras((0, 0)), 32, 32)
    columns = torch.arange(32).expand(1, 32, 32)
    assert bool((view.role[view.mask & (columns > 16)] == MAIN).all())
    assert bool((view.role[view.mask & (columns < 15)] == ACCENT).all())


def test_shading_is_matt_and_in_its_range():
    normals = torch.nn.functional.normalize(torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    brightness = shading(normals)
    assert float(brightness.max()) <= 1 + 1e-6 and float(brightness.min()) >= 0.48 - 1e-6
    assert torch.allclose(brightness + shading(-normals), torch.full((5000,), 2 * 0.74), atol=1e-6)


def test_pictures_are_linear_in_colours():
    layers = shaded_coverage(surface_view(PAIR, *cameras((10, 20)), 32, 32), 2)
    generator = torch.Generator().manual_seed(0)
    colors, backgrounds = torch.rand(2, 1, 3, 3, generator=generator), torch.rand(2, 1, 3, generator=generator)
    mixed = composite(layers, 0.3 * colors[0] + 0.7 * colors[1], 0.3 * backgrounds[0] + 0.7 * backgrounds[1])
    apart = 0.3 * composite(layers, colors[0], backgrounds[0]) + 0.7 * composite(layers, colors[1], backgrounds[1])
    assert torch.allclose(mixed, apart, atol=1e-6)
    empty = layers[:, 3] == 0
    pictures = composite(layers, colors[0], backgrounds[0])
    assert torch.allclose(pictures.permute(0, 2, 3, 1)[empty], backgrounds[0].expand(int(empty.sum()), 3))


def test_layers_add_up():
    layers = shaded_coverage(surface_view(KINDS["robot"], *cameras((15, 30)), 48, 48), 3)
    assert layers.shape == (1, 4, 16, 16)
    shaded = layers[:, :3].sum(1)
    assert bool((shaded <= layers[:, 3] + 1e-6).all()) and bool((shaded >= 0.48 * layers[:, 3] - 1e-6).all())


def test_render_has_the_objects_colours():
    c2w, fovy = cameras((0, 0))
    rgb, coverage = render(PAIR, "blue", "orange", c2w, fovy, 32, torch.tensor([[0.2, 0.9, 0.4]]))
    assert rgb.shape == (1, 3, 32, 32) and coverage.shape == (1, 32, 32)
    assert 0 <= float(rgb.min()) and float(rgb.max()) <= 1
    view = surface_view(PAIR, c2w, fovy, 64, 64)
    ball = rgb[0, :, 16, 25]  # inside the right one
    assert coverage[0, 16, 25] == 1
    assert torch.allclose(ball / ball.max(), torch.tensor(COLORS["blue"]) / max(COLORS["blue"]), atol=1e-4)
    assert bool(view.mask.any())
    assert torch.allclose(rgb[0, :, 0, 0], torch.tensor([0.2, 0.9, 0.4]))


def test_role_colors():
    expected = torch.tensor([COLORS["red"], COLORS["pink"], DETAIL_COLOR])
    assert torch.equal(role_colors("red", "pink"), expected)
