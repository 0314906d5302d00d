"""Meshes of fields whose surfaces are known, in memory and on disk."""

import numpy as np
import pytest
import torch
import trimesh
from turboprop.amortized.field import Field, FieldHeads
from turboprop.amortized.meshing import EmptyField, extract_mesh, query_grid, write_mesh
from turboprop.amortized.voxel_sampling import VoxelSpace


def sphere_field(radius: float, half: float = 1.0) -> Field:
    """A generator's first shape."""
    return Field(FieldHeads(4, 8, 3, radius), VoxelSpace(torch.zeros(4**3, 4), 4), half)


class UnionOfSpheres(Field):
    """Spheres (center, radius) in a field's place."""

    def __init__(self, *spheres: tuple[tuple[float, float, float], float]):
        base = sphere_field(0.5)
        super().__init__(base.heads, base.space, base.radius)
        self.spheres = spheres

    def signed_distance(self, points: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
        return torch.stack([(points - torch.tensor(c)).norm(dim=-1) - r for c, r in self.spheres]).amin(0)


def place_colors(points: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    return (points + 1) / 2  # +x red, +y green, +z blue


def mesh_of(field: Field, resolution: int = 64, min_component: float = 0.02, level: float = 0.0):
    return extract_mesh(field, place_colors, resolution, min_component, level)


def test_a_sphere():
    mesh, statistics = mesh_of(sphere_field(0.6))
    assert mesh.is_watertight and mesh.is_winding_consistent and statistics.watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.02)  # positive: faces look outwards
    assert mesh.euler_number == 2
    centers = mesh.triangles_center / np.linalg.norm(mesh.triangles_center, axis=1, keepdims=True)
    assert (mesh.face_normals * centers).sum(1).min() > 0.9
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.6).max() < 0.01
    assert (statistics.faces, statistics.vertices) == (len(mesh.faces), len(mesh.vertices))
    assert statistics.dropped_components == 0


def test_another_level_is_a_larger_sphere():
    mesh, _ = mesh_of(sphere_field(0.6), level=0.1)
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.7).max() < 0.01
    with pytest.raises(EmptyField, match="its signed distance is -0.37.* or more everywhere"):
        mesh_of(sphere_field(0.4), level=-0.5)


def test_units_follow_the_cube():
    mesh, _ = mesh_of(sphere_field(1.2, half=2.0))
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 1.2**3, rel=0.02)


def test_place_and_axes():
    mesh, _ = mesh_of(UnionOfSpheres(((0.5, 0.0, 0.0), 0.2), ((0.0, 0.2, 0.3), 0.2)))
    center = mesh.bounds.mean(0)
    assert mesh.bounds[1] == pytest.approx([0.7, 0.4, 0.5], abs=0.02)
    assert center[0] > 0.2


def test_small_pieces_are_dropped_and_counted():
    spheres = (((0.0, 0.0, 0.0), 0.5), ((0.85, 0.85, 0.85), 0.06), ((-0.8, 0.8, 0.0), 0.05))
    mesh, statistics = mesh_of(UnionOfSpheres(*spheres), min_component=0.05)
    assert statistics.dropped_components == 2 and mesh.is_watertight
    assert np.linalg.norm(mesh.vertices, axis=1).max() < 0.55
    assert len(mesh.visual.vertex_colors) == len(mesh.vertices)
    kept, statistics = mesh_of(UnionOfSpheres(*spheres), min_component=0.0)
    assert statistics.dropped_components == 0 and len(kept.split()) == 3


def test_pieces_of_some_size_are_kept():
    mesh, statistics = mesh_of(UnionOfSpheres(((0.0, -0.4, 0.0), 0.3), ((0.0, 0.5, 0.0), 0.25)))
    assert statistics.dropped_components == 0 and len(mesh.split()) == 2


def test_what_leaves_the_cube_is_closed_at_its_sides():
    mesh, statistics = mesh_of(sphere_field(1.2))
    assert mesh.is_watertight and statistics.watertight
    assert np.abs(mesh.vertices).max() < 1 + 2 / 63
    cap = np.pi * 0.2**2 * (3 * 1.2 - 0.2) / 3  # the ball reaches 0.2 beyond each of the six sides
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 1.2**3 - 6 * cap, rel=0.05)


def test_a_full_cube_is_a_cube():
    mesh, _ = mesh_of(sphere_field(5.0), resolution=32)
    assert mesh.is_watertight and mesh.volume == pytest.approx(8, rel=0.02)


def test_an_empty_field_says_so():
    with pytest.raises(EmptyField, match="the field is empty: its signed distance is 0.9"):
        mesh_of(sphere_field(-0.9))


def test_the_grid_spans_the_cube():
    grid = query_grid(sphere_field(0.5), 5)
    assert grid.shape == (5, 5, 5)
    assert grid[2, 2, 2] == pytest.approx(-0.5) and grid[0, 0, 0] == pytest.approx(np.sqrt(3) - 0.5)


def written(tmp_path, ending: str) -> trimesh.Trimesh:
    mesh, _ = mesh_of(UnionOfSpheres(((0.3, 0.0, 0.0), 0.4), ((0.0, 0.0, 0.5), 0.3)), resolution=32)
    path = tmp_path / f"model.{ending}"
    before = mesh.vertices.copy()
    write_mesh(mesh, str(path))
    assert np.array_equal(mesh.vertices, before)  # writing leaves the mesh as it was
    (read,) = trimesh.load_scene(path, process=False).geometry.values()
    return read, mesh


@pytest.mark.parametrize("ending, forward, up", [("obj", 0, 2), ("glb", 2, 1)])
def test_files_read_back_with_their_axes_and_colours(tmp_path, ending, forward, up):
    """OBJ keeps the world's axes and sRGB; glTF looks along +z, with +y up, and its colours are linear floats."""
    read, mesh = written(tmp_path, ending)
    left = ({0, 1, 2} - {forward, up}).pop()
    assert read.is_watertight and read.volume == pytest.approx(mesh.volume, rel=1e-3)  # not mirrored
    world = read.vertices[:, [forward, left, up]]
    assert np.sort(world, axis=0) == pytest.approx(np.sort(mesh.vertices, axis=0), abs=1e-5)
    expected = (world + 1) / 2  # sRGB; glTF's vertex colours are linear
    if ending != "glb":
        colors = read.visual.vertex_colors[:, :3] / 255.0
    else:
        colors = read.visual.vertex_attributes["color"][:, :3]
        assert read.visual.material.metallicFactor == 0
        expected = np.where(expected <= 0.04045, expected / 12.92, ((expected + 0.055) / 1.055) ** 2.4)
    assert np.abs(colors - expected).max() < 0.015
    assert world[:, 0].max() == pytest.approx(0.7, abs=0.03) and world[:, 2].max() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("ending", ["ply", "stl"])
def test_other_formats(tmp_path, ending):
    read, mesh = written(tmp_path, ending)
    assert len(read.faces) == len(mesh.faces)


def test_colours_of_half_precision_are_written():
    """A run in bf16-mixed has such colours."""
    field = sphere_field(0.6)
    exact, _ = extract_mesh(field, lambda points, features: torch.full((len(points), 3), 0.5), 16, 0.02, 0.0)
    half, _ = extract_mesh(field, lambda points, features: torch.full((len(points), 3), 0.5).bfloat16(), 16, 0.02, 0.0)
    assert (exact.visual.vertex_colors == half.visual.vertex_colors).all()
