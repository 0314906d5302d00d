"""Chamfer distances with closed forms."""

import math

import numpy as np
import pytest
import torch
import trimesh
from turboprop.evaluation.surface_metrics import mesh_chamfer, point_chamfer, surface_points
from turboprop.world.objects import KINDS
from turboprop.world.primitives import box, sphere

BALL = sphere((0.0, 0.0, 0.0), 0.5)


def ball_mesh(radius: float, center=(0.0, 0.0, 0.0)) -> trimesh.Trimesh:
    mesh = trimesh.creation.icosphere(subdivisions=5, radius=radius)
    return mesh.apply_translation(center)


def test_surface_points_lie_on_the_sphere_and_cover_it_evenly():
    points = surface_points(BALL, 4000)
    assert points.shape == (4000, 3)
    assert np.allclose(np.linalg.norm(points, axis=1), 0.5, atol=2e-3)
    octants = np.unique((points > 0) @ [4, 2, 1], return_counts=True)[1]
    assert octants.min() > 0.85 * 500 and octants.max() < 1.15 * 500


def test_surface_points_of_a_box_go_to_each_face_by_its_area():
    points = surface_points(box((0, 0, 0), (0.6, 0.3, 0.2)), 6000)
    top = np.isclose(np.abs(points[:, 2]), 0.2, atol=3e-3).mean()
    areas = np.array([0.3 * 0.2, 0.6 * 0.2, 0.6 * 0.3])
    assert top == pytest.approx(areas[2] / areas.sum(), abs=0.05)


def test_surface_points_are_the_same_every_time():
    assert np.array_equal(surface_points(BALL, 500, seed=3), surface_points(BALL, 500, seed=3))
    assert not np.array_equal(surface_points(BALL, 500, seed=3), surface_points(BALL, 500, seed=4))


@pytest.mark.parametrize("name", list(KINDS))
def test_surface_points_of_every_kind_lie_on_it(name):
    points = torch.from_numpy(surface_points(KINDS[name].signed_distance, 500))
    assert KINDS[name].signed_distance(points).abs().max() < 2e-3


def test_chamfer_of_concentric_spheres_is_the_difference_of_their_radii():
    chamfer = mesh_chamfer(ball_mesh(0.7), BALL)
    assert chamfer.distance == pytest.approx(0.2, abs=0.002)
    assert chamfer.share == pytest.approx(0.2 / math.sqrt(3), abs=0.002)  # the diagonal of a unit cube is sqrt(3)


def test_chamfer_of_the_surface_itself_is_only_the_sampling():
    assert mesh_chamfer(ball_mesh(0.5), BALL).distance < 0.008


def test_chamfer_is_symmetric_and_means_both_ways():
    ours, exact = np.array([[0.0, 0, 0]]), np.array([[0.0, 0, 0], [3.0, 0, 0]])
    assert point_chamfer(ours, exact).distance == pytest.approx(0.5 * (0 + 1.5))
    assert point_chamfer(exact, exact).distance == 0


def test_chamfer_sees_what_is_missing():
    """A mesh that is only a part of the truth lies on it, but the truth does not lie on the mesh."""
    ball = ball_mesh(0.5)
    half = ball.submesh([ball.triangles_center[:, 2] > 0], append=True)
    assert mesh_chamfer(half, BALL).distance > 0.05


@pytest.mark.parametrize(
    "mesh", [None, trimesh.Trimesh(), trimesh.Trimesh(np.zeros((3, 3)), [[0, 1, 2]], process=False)]
)
def test_an_empty_mesh_is_infinitely_far(mesh):
    chamfer = mesh_chamfer(mesh, BALL)
    assert chamfer.distance == math.inf and chamfer.share == math.inf


def test_a_solid_outside_the_world_is_refused():
    with pytest.raises(ValueError, match="no surface within"):
        surface_points(sphere((9.0, 0.0, 0.0), 0.5), 100)
