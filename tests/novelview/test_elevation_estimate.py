"""The elevation of a picture from views around it: exact silhouettes give it back, at any azimuth of the picture."""

import math

import pytest
import torch
import torch.nn.functional as F
from turboprop.novelview.elevation_estimate import RelativeViews, cameras_at, estimate_elevation, overlaps, peak
from turboprop.novelview.relative_views import (
    OFFSETS,
    DrawingOptions,
    draw_around,
    drawn_relative_views,
    silhouettes_on_plain,
)
from turboprop.novelview.teacher import NovelViewTeacher
from turboprop.world.cameras import orbit_c2w
from turboprop.world.objects import KINDS
from turboprop.world.render import surface_view

DISTANCE, FOVY = 2.7, math.radians(40.0)
PLACES = torch.tensor([(0.0, 0.0), *OFFSETS])


def exact_views(kind: str, elevation: float, azimuth: float, places=PLACES) -> RelativeViews:
    """True silhouettes of one of the world's shapes, averaged over 2 x 2 rays."""
    raised, turned = places.unbind(-1)
    c2w = orbit_c2w(raised + elevation, turned + azimuth, torch.full_like(raised, DISTANCE))
    mask = surface_view(KINDS[kind], c2w, torch.full((len(c2w),), FOVY), 64, 64).mask.float()
    return RelativeViews(F.avg_pool2d(mask[:, None], 2)[:, 0], raised, turned, DISTANCE, FOVY)


@pytest.mark.parametrize(
    "kind, elevation, azimuth",
    [("table", 8.0, 20.0), ("boat", 33.0, -70.0), ("snowman", 21.0, 140.0)],  # the last is nearly a body of revolution
)
def test_exact_silhouettes_give_the_elevation(kind, elevation, azimuth):
    estimate = estimate_elevation(exact_views(kind, elevation, azimuth))
    assert abs(estimate.elevation - elevation) < 5.0
    assert not estimate.at_an_end and estimate.contrast > 0.05
    assert len(estimate.scores) == len(estimate.candidates) and 0.7 < max(estimate.scores) <= 1.0


def test_one_view_may_be_wrong_and_the_same_views_give_the_same_estimate():
    views = exact_views("table", 17.0, 0.0)
    wrong = views.silhouettes.clone()
    wrong[5] = 0.0
    spoilt = RelativeViews(wrong, views.raised, views.turned, DISTANCE, FOVY)
    estimate = estimate_elevation(spoilt)
    assert abs(estimate.elevation - 17.0) < 5.0
    assert estimate == estimate_elevation(spoilt)


def test_turned_views_of_a_ball_tell_nothing_and_the_contrast_says_so():
    """Whatever the elevation, a ball is a disc."""
    ring = PLACES[:8]
    c2w = orbit_c2w(ring[:, 0] + 10.0, ring[:, 1], torch.full((8,), DISTANCE))
    rows, columns = torch.meshgrid(*[(torch.arange(32) + 0.5) / 16 - 1] * 2, indexing="ij")
    disc = (rows**2 + columns**2 < 0.25).float().expand(len(c2w), -1, -1)
    estimate = estimate_elevation(RelativeViews(disc, ring[:, 0], ring[:, 1], DISTANCE, FOVY))
    assert estimate.contrast < 0.05


def test_a_hull_at_the_true_elevation_explains_each_silhouette():
    views = exact_views("table", 20.0, 45.0)
    each, shown = overlaps(views, 20.0)
    assert each.shape == (len(PLACES),) and shown.shape == views.silhouettes.shape
    assert each.min() > 0.7 and each.mean() > overlaps(views, 45.0)[0].mean() + 0.1


def test_cameras_stand_where_the_orbit_has_them():
    views = exact_views("table", 20.0, 0.0, PLACES[:4])
    expected = orbit_c2w(views.raised + 20.0, views.turned, torch.full((4,), DISTANCE))
    torch.testing.assert_close(cameras_at(views, 20.0), expected)


def test_the_peak_of_a_parabola_is_its_vertex():
    places = tuple(float(x) for x in range(0, 50, 10))
    assert peak(places, tuple(-((x - 23.0) ** 2) for x in places)) == pytest.approx(23.0)
    assert peak(places, (5.0, 4.0, 3.0, 2.0, 1.0)) == 0.0 and peak(places, (1.0, 2.0, 3.0, 4.0, 5.0)) == 40.0
    assert peak(places, (1.0, 2.0, 2.0, 2.0, 1.0)) == 15.0  # of a plateau, where it begins to be one


@pytest.mark.parametrize(
    "change, message",
    [
        ({"silhouettes": torch.zeros(3, 8, 8)}, r"at least 4 views, got \[3, 8, 8\]"),
        ({"silhouettes": torch.zeros(4, 8, 9)}, r"got \[4, 8, 9\]"),
        ({"raised": torch.zeros(5)}, r"an angle for each of 4 views, got \[5\]"),
    ],
)
def test_impossible_views_are_named(change, message):
    given = {"silhouettes": torch.zeros(4, 8, 8), "raised": torch.zeros(4), "turned": torch.zeros(4)}
    with pytest.raises(ValueError, match=message):
        RelativeViews(**{**given, **change}, distance=DISTANCE, fovy=FOVY)


def test_too_few_candidates():
    views = RelativeViews(torch.zeros(4, 8, 8), torch.zeros(4), torch.zeros(4), DISTANCE, FOVY)
    with pytest.raises(ValueError, match="at least 3 elevations, got 2"):
        estimate_elevation(views, (0.0, 5.0))


def test_a_silhouette_is_what_differs_from_the_rim():
    picture = torch.full((1, 3, 8, 8), 0.96)
    picture[..., 2:5, 3:6] = torch.tensor([0.9, 0.3, 0.96])[:, None, None]  # one channel is enough
    picture[..., 0, 0] = 0.0  # one pixel of the rim does not change its median
    found = silhouettes_on_plain(picture)
    assert found[0, 2:5, 3:6].eq(1).all() and found[0, 1:, 1:].sum() == 9


def test_views_are_drawn_alike_and_from_no_global_generator(tiny_zero123_folder):
    teacher = NovelViewTeacher.from_pretrained(str(tiny_zero123_folder))
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(2))
    state = torch.get_rng_state()
    drawn = draw_around(teacher, picture, DISTANCE, DrawingOptions(num_steps=2))
    assert torch.equal(torch.get_rng_state(), state)
    assert drawn.shape == (len(OFFSETS), 3, 16, 16) and drawn.min() >= 0 and drawn.max() <= 1
    assert torch.equal(drawn, draw_around(teacher, picture, DISTANCE, DrawingOptions(num_steps=2)))
    other = draw_around(teacher, picture, DISTANCE, DrawingOptions(num_steps=2, seed=1))
    assert not torch.equal(drawn, other)


def test_the_picture_itself_is_the_first_view(tiny_zero123_folder):
    teacher = NovelViewTeacher.from_pretrained(str(tiny_zero123_folder))
    rgba = torch.zeros(40, 40, 4)
    rgba[10:30, 10:30] = torch.tensor([0.2, 0.4, 0.6, 1.0])
    views, pictures = drawn_relative_views(teacher, rgba, DISTANCE, 40.0, DrawingOptions(num_steps=1))
    assert views.silhouettes.shape == (1 + len(OFFSETS), 32, 32) and pictures.shape == (1 + len(OFFSETS), 3, 16, 16)
    assert views.silhouettes[0].mean().item() == pytest.approx(0.25, abs=0.01)
    assert (views.raised[0], views.turned[0]) == (0, 0)
    torch.testing.assert_close(pictures[0, :, 8, 8], torch.tensor([0.2, 0.4, 0.6]))
