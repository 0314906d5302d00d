"""The first Gaussians: their places, colours and spacing."""

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from turboprop.gaussians.initial_points import (
    ball_points,
    file_points,
    point_spacing,
    sphere_points,
    surface_points,
    vertex_color_at,
)

from threestudio.utils.errors import UserError


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


def test_a_surface_keeps_what_its_texture_shows(tmp_path):
    """A square, red to the left and blue to the right, whose corners alone would make all of it purple."""
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:, :4, 0], picture[:, 4:, 2] = 255, 255
    vertices, faces = np.array([[0.0, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1]]), [[0, 1, 2], [0, 2, 3]]
    material = trimesh.visual.material.SimpleMaterial(image=Image.fromarray(picture))
    visual = trimesh.visual.TextureVisuals(uv=vertices[:, 1:], material=material)
    trimesh.Trimesh(vertices, faces, visual=visual, process=False).export(str(tmp_path / "square.obj"))
    torch.manual_seed(0)
    points, colors = file_points(tmp_path / "square.obj", 2000)
    y = points[:, 1]
    clear = (y - 0.5).abs().lt(0.4) & (y - 0.5).abs().gt(0.1)
    expected = torch.stack([(y < 0.5).float(), torch.zeros_like(y), (y > 0.5).float()], -1)
    assert clear.sum() > 1000 and torch.allclose(colors[clear], expected[clear], atol=1e-5)


def test_a_mesh_without_colors_is_grey(tmp_path):
    trimesh.creation.box((1, 1, 1)).export(str(tmp_path / "box.stl"))
    assert (file_points(tmp_path / "box.stl", 50).colors == 0.5).all()


def test_what_is_no_mesh_is_said(tmp_path):
    key = "geometry.shape_init"
    (tmp_path / "a.glb").write_bytes(b"glTF not really")
    (tmp_path / "a.obj").write_text("v 0 0 0\n")
    (tmp_path / "a.txt").write_text("v 0 0 0\n")
    (tmp_path / "a.ply").write_text("ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n0\n")
    cases = {
        "none.obj": "no file .*none.obj",
        "a.txt": "expected a file ending in .*a.txt",
        "a.glb": "a.glb is a GLB of version",
        "a.obj": "a.obj has no triangles",
        "a.ply": "a.ply: points need the columns y, z",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=f"{key}: .*{message}") as raised:
            file_points(tmp_path / name, 10, key)
        assert "\n" not in str(raised.value)
