"""The first Gaussians: their places, colours and spacing."""

import numpy as np
import pytest
import torch
import trimesh
from turboprop.gaussians.initial_points import (
    ball_points,
    file_points,
    point_spacing,
    sphere_points,
    surface_points,
    vertex_color_at,
)


def test_ball_and_sphere():
    torch.manual_seed(0)
    ball, sphere = ball_points(20000, 0.8).points, sphere_points(500, 0.8)
    radii = ball.norm(dim=-1)
    assert radii.max() <= 0.8 and torch.allclose(radii.mean(), torch.tensor(0.6), atol=0.01)  # 3/4 of the radius
    assert torch.allclose((radii < 0.4).float().mean(), torch.tensor(0.125), atol=0.01)
    assert torch.allclose(sphere.points.norm(dim=-1), torch.full((500,), 0.8), atol=1e-5)
    assert sphere.colors.min() >= 0.4 and sphere.colors.max() <= 0.6


def test_points_of_a_surface_follow_its_area_and_colors():
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [3, 0, 1], [0, 3, 1]])
    faces = torch.tensor([[0, 1, 2], [3, 4, 5]])
    torch.manual_seed(0)
    points, colors = surface_points(vertices, faces, vertex_color_at((vertices / 3).abs(), faces), 20000)
    upper = points[:, 2] > 0.5
    assert torch.allclose(upper.float().mean(), torch.tensor(0.9), atol=0.01)
    assert torch.allclose(points[upper].mean(0), torch.tensor([1.0, 1.0, 1.0]), atol=0.03)
    assert torch.allclose(colors, points / 3, atol=1e-6)
    assert bool((points[:, :2].sum(1) <= 3 + 1e-5).all())
    with pytest.raises(ValueError, match="no area"):
        surface_points(vertices, torch.tensor([[0, 0, 1]]), None, 10)


def test_spacing_is_the_distance_of_three_neighbours():
    grid = torch.stack(torch.meshgrid(*[torch.arange(4.0)] * 3, indexing="ij"), -1).reshape(-1, 3) * 0.5
    assert torch.allclose(point_spacing(grid), torch.full((64,), 0.5))
    assert torch.allclose(point_spacing(torch.zeros(5, 3)), torch.full((5,), 1e-4))
    assert point_spacing(torch.zeros(1, 3)).tolist() == pytest.approx([0.1])


def box(path, color=(255, 0, 51)):
    mesh = trimesh.creation.box((2.0, 1.0, 0.5))
    mesh.visual.vertex_colors = np.array([[*color, 255]] * len(mesh.vertices), np.uint8)
    mesh.export(path)


@pytest.mark.parametrize("ending", ["ply", "obj"])
def test_meshes_keep_their_axes_and_colors(tmp_path, ending):
    box(tmp_path / f"box.{ending}")
    points, colors = file_points(tmp_path / f"box.{ending}", 3000)
    assert points.shape == (3000, 3)
    assert torch.allclose(points.abs().amax(0), torch.tensor([1.0, 0.5, 0.25]), atol=1e-5)
    assert torch.allclose(colors, torch.tensor([1.0, 0.0, 0.2]).expand(3000, 3), atol=0.01)


def test_gltf_is_turned_upright_and_its_linear_colors_to_srgb(tmp_path):
    box(tmp_path / "box.glb", (255, 0, 55))
    points, colors = file_points(tmp_path / "box.glb", 3000)
    assert torch.allclose(points.abs().amax(0), torch.tensor([0.25, 1.0, 0.5]), atol=1e-5)
    linear = 55 / 255
    assert colors[0].tolist() == pytest.approx([1.0, 0.0, 1.055 * linear ** (1 / 2.4) - 0.055], abs=0.01)


def test_what_is_no_mesh_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no mesh file at"):
        file_points(tmp_path / "none.obj", 10)
    with pytest.raises(ValueError, match="expected a file that ends in one of"):
        file_points(tmp_path / "a.txt", 10)
    (tmp_path / "a.glb").write_bytes(b"glTF not really")
    with pytest.raises(ValueError, match="a.glb: not a readable mesh"):
        file_points(tmp_path / "a.glb", 10)
    (tmp_path / "a.obj").write_text("v 0 0 0\n")
    with pytest.raises(ValueError, match="a.obj"):
        file_points(tmp_path / "a.obj", 10)
