"""Silhouettes, colours and the front/back score, where the truth is known in closed form."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from turboprop.evaluation.cameras import evaluation_cameras, exact_layers, exact_pictures, exact_surface, turned_surface
from turboprop.evaluation.picture_metrics import color_error, front_back_score, psnr, psnr_of_each, silhouette_iou
from turboprop.evaluation.wrong_objects import janus
from turboprop.world.captions import ObjectSpec
from turboprop.world.objects import KINDS

SIZE = 32
FACED = [name for name, kind in KINDS.items() if kind.has_front]


def disc(radius: float, size: int = 256) -> torch.Tensor:  # [1, size, size]
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    return ((axis[:, None].square() + axis[None].square()) < radius**2).float()[None]


def test_iou_of_concentric_discs_is_the_ratio_of_their_areas():
    assert float(silhouette_iou(disc(0.4), disc(0.8))) == pytest.approx(0.25, abs=0.005)


def test_iou_of_equal_disjoint_and_empty_silhouettes():
    empty = torch.zeros(1, 8, 8)
    left, right = empty.clone(), empty.clone()
    left[:, :, :4], right[:, :, 4:] = 1, 1
    assert silhouette_iou(left, left).tolist() == [1.0]
    assert silhouette_iou(left, right).tolist() == [0.0]
    assert silhouette_iou(empty, left).tolist() == [0.0]
    assert silhouette_iou(empty, empty).tolist() == [1.0]


def test_iou_counts_opacity_above_one_half():
    half = torch.full((1, 4, 4), 0.5)
    assert silhouette_iou(half, torch.ones(1, 4, 4)).tolist() == [0.0]
    assert silhouette_iou(half + 0.01, torch.ones(1, 4, 4)).tolist() == [1.0]


def test_color_error_counts_only_where_both_are():
    coverage, alpha = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    coverage[:, :, :3], alpha[:, :, 1:] = 1, 1
    exact = torch.zeros(1, 4, 4, 3)
    rgb = torch.ones(1, 4, 4, 3)  # wrong everywhere ...
    rgb[:, :, 1:3] = torch.tensor([0.3, 0.0, 0.0])  # ... but nearly right in the intersection
    assert color_error(rgb, alpha, exact, coverage).item() == pytest.approx(0.1)


def test_color_error_without_intersection_is_nan():
    ones, zeros = torch.ones(1, 4, 4), torch.zeros(1, 4, 4)
    assert math.isnan(color_error(torch.ones(1, 4, 4, 3), zeros, torch.ones(1, 4, 4, 3), ones).item())


@pytest.fixture(scope="module")
def truth():
    """The exact pictures of every kind with a front, right and turned."""
    cameras = evaluation_cameras(8)
    pictures = {}
    for name in FACED:
        spec = ObjectSpec(name, "red", "blue")
        surface = exact_surface(spec.shape, cameras, SIZE)
        turned = turned_surface(spec.shape, cameras, surface)
        pictures[name] = tuple(exact_pictures(spec, exact_layers(s), cameras.background) for s in (surface, turned))
    return pictures


@pytest.fixture(scope="module")
def two_faced():
    """Pictures of every kind with a front, as a Janus."""
    cameras = evaluation_cameras(8)
    surfaces = {name: exact_surface(janus(KINDS[name]), cameras, SIZE) for name in FACED}
    return {
        name: exact_pictures(ObjectSpec(name, "red", "blue"), exact_layers(surface), cameras.background)
        for name, surface in surfaces.items()
    }


def imperfect(pictures):
    """Blurred to a quarter of the resolution, enlarged by a tenth and noisy."""
    rgb, alpha = pictures
    stacked = torch.cat([rgb, alpha[..., None]], -1).permute(0, 3, 1, 2)
    stacked = F.interpolate(F.avg_pool2d(stacked, 4), scale_factor=4, mode="bilinear")
    affine = torch.tensor([[0.9, 0.0, 0.0], [0.0, 0.9, 0.0]]).expand(len(stacked), -1, -1)
    grid = F.affine_grid(affine, list(stacked.shape), align_corners=False)
    stacked = F.grid_sample(stacked, grid, padding_mode="border", align_corners=False).permute(0, 2, 3, 1)
    noise = 0.05 * torch.randn(rgb.shape, generator=torch.Generator().manual_seed(0))
    return (stacked[..., :3] + noise).clamp(0, 1), stacked[..., 3]


def test_front_back_of_the_truth_is_one_and_of_the_turned_truth_zero(truth):
    for name, (right, turned) in truth.items():
        assert front_back_score(*right, right, turned) == 1.0, name
        assert front_back_score(*turned, right, turned) == 0.0, name


def test_front_back_catches_every_janus(truth, two_faced):
    for name, (right, turned) in truth.items():
        assert front_back_score(*two_faced[name], right, turned) == pytest.approx(0.5, abs=0.1), name


def test_front_back_tells_imperfect_objects_from_an_imperfect_janus(truth, two_faced):
    good = {name: front_back_score(*imperfect(right), right, turned) for name, (right, turned) in truth.items()}
    janus_scores = {name: front_back_score(*imperfect(two_faced[name]), *truth[name]) for name in FACED}
    for name in FACED:
        assert good[name] > janus_scores[name] + 0.1, name
    assert sum(good.values()) / len(good) > 0.85
    assert sum(janus_scores.values()) / len(janus_scores) == pytest.approx(0.5, abs=0.05)


def test_front_back_without_any_front_or_any_difference_is_one_half(truth):
    right, turned = truth["car"]
    assert front_back_score(*right, right, right) == 0.5
    empty = torch.full_like(right[0], 0.55), torch.zeros_like(right[1])
    assert front_back_score(*empty, right, turned) == pytest.approx(0.5, abs=0.05)


def _turned_round(solid):
    """By 180 degrees around the vertical."""
    return lambda points: solid(points * points.new_tensor([-1.0, -1.0, 1.0]))


def test_a_turned_surface_is_that_of_the_turned_object():
    kind = KINDS["duck"]
    solids = tuple((role, _turned_round(solid)) for role, solid in kind.solids)
    turned = replace(kind, solids=solids)
    for views in (4, 3):  # with and without the opposite view among the views
        cameras = evaluation_cameras(views)
        found = exact_layers(turned_surface(kind, cameras, exact_surface(kind, cameras, 16)))
        direct = exact_layers(exact_surface(turned, cameras, 16))
        assert (found - direct).abs().mean() < 2e-3


def test_a_picture_that_is_not_finite_is_not_a_perfect_one():
    broken, truth = torch.full((1, 3, 4, 4), math.nan), torch.zeros(1, 3, 4, 4)
    assert math.isnan(psnr(broken, truth))
    assert psnr_of_each(broken, truth).isnan().all()
    assert psnr(truth, truth) == math.inf
