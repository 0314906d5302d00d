"""Every kind of object: inside its ball, with both colours to be seen, front and back as it says."""

import math

import pytest
import torch
from turboprop.world.cameras import orbit_c2w
from turboprop.world.objects import ACCENT, COLORS, DETAIL, KINDS, MAIN
from turboprop.world.render import BOUNDING_RADIUS, SurfaceView, surface_view

HARDLY_DIFFER = {"rocket", "cactus", "umbrella"}  # a window, arms of two heights, a hook


@pytest.fixture(scope="module")
def opposite_views() -> dict[str, SurfaceView]:
    """Each kind from azimuths 0, 180 and 90, elevation 15."""
    c2w = orbit_c2w(torch.full((3,), 15.0), torch.tensor([0.0, 180.0, 90.0]), torch.full((3,), 2.7))
    fovy = torch.full((3,), math.radians(40.0))
    return {name: surface_view(kind, c2w, fovy, 40, 40) for name, kind in KINDS.items()}


def difference(view: SurfaceView, first: int, second: int) -> float:
    """Share of the silhouettes' union where two views show another role, or one shows nothing."""
    seen = torch.where(view.mask, view.role, -1)
    union = view.mask[first] | view.mask[second]
    return float((seen[first] != seen[second])[union].float().mean())


def test_enough_kinds_and_colours():
    assert len(KINDS) >= 12 and len(COLORS) >= 8
    assert all(name == kind.name for name, kind in KINDS.items())
    assert sum(kind.has_front for kind in KINDS.values()) >= 3
    colors = torch.tensor(list(COLORS.values()))
    apart = torch.cdist(colors, colors) + 9 * torch.eye(len(colors))
    assert float(apart.min()) > 0.2  # no two that could be taken for one another


@pytest.mark.parametrize("name", KINDS)
def test_lies_inside_the_bounding_ball_and_is_of_some_size(name):
    line = torch.linspace(-1.25, 1.25, 50)
    grid = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)
    distance = KINDS[name].signed_distance(grid)
    outside = grid.norm(dim=-1) >= BOUNDING_RADIUS
    assert float(distance[outside].min()) > 0
    shell = torch.nn.functional.normalize(torch.randn(20000, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert float(KINDS[name].signed_distance(shell * BOUNDING_RADIUS).min()) > 0
    inside = grid[distance < 0]
    assert inside[:, 2].max() - inside[:, 2].min() > 0.6
    assert inside.norm(dim=-1).max() > 0.6


@pytest.mark.parametrize("name", KINDS)
def test_roles(name, opposite_views):
    kind, view = KINDS[name], opposite_views[name]
    used = {role for role, _ in kind.solids}
    assert {MAIN, ACCENT} <= used <= {MAIN, ACCENT, DETAIL}
    seen = view.role[view.mask]
    for role in used:
        assert float((seen == role).float().mean()) > (0.002 if role == DETAIL else 0.03), role
    assert set(seen.unique().tolist()) <= used
    # A point deep in one solid has that solid's role.
    for role, solid in kind.solids[:1]:
        points = torch.rand(20000, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
        others = torch.stack([other(points) for _, other in kind.solids[1:]]).amin(0)
        alone = (solid(points) < 0) & (others > 0)
        assert int(alone.sum()) > 0
        assert bool((kind.roles(points[alone]) == role).all())


@pytest.mark.parametrize("name", KINDS)
def test_front_and_back(name, opposite_views):
    share = difference(opposite_views[name], 0, 1)
    if KINDS[name].has_front:
        assert share > 0.04, share
    elif name not in HARDLY_DIFFER:
        assert share < 0.005, share
    else:
        assert share < 0.25, share


def test_fronts_face_the_front(opposite_views):
    """Eyes, windshield and the like are seen from azimuth 0 and not from 180."""
    for name in ("snowman", "robot", "duck", "car"):
        dark = (opposite_views[name].role == DETAIL) & opposite_views[name].mask
        assert int(dark[0].sum()) > 2 and int(dark[1].sum()) == 0, name
