import math

import pytest
import torch
import trimesh

from threestudio.models.isosurface import (
    EmptyFieldError,
    MarchingCubeCPUHelper,
    MarchingTetrahedraHelper,
    marching_tetrahedra,
    tetrahedral_lattice,
)
from threestudio.models.mesh import Mesh
from threestudio.utils.errors import UserError

HELPERS = [MarchingTetrahedraHelper, MarchingCubeCPUHelper]
RADIUS = 0.3


def as_trimesh(mesh):
    return trimesh.Trimesh(mesh.v_pos.detach().numpy(), mesh.t_pos_idx.numpy(), process=False)


def sphere_level(vertices):
    return ((vertices - 0.5).norm(dim=-1) - RADIUS)[:, None]


@pytest.mark.parametrize("resolution", [2, 5, 8])
def test_lattice_fills_the_cube_without_gaps(resolution):
    vertices, tets = tetrahedral_lattice(resolution)
    p = vertices[tets.long()].double()
    volumes = torch.linalg.det(p[:, 1:] - p[:, :1]) / 6
    assert (volumes > 0).all()
    assert abs(volumes.sum().item() - 1) < 1e-6
    # Conforming: every triangle belongs to two tetrahedra, or lies on the cube's surface.
    faces = torch.cat([tets[:, list(c)] for c in ((0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3))]).sort(-1).values
    unique, count = faces.unique(dim=0, return_counts=True)
    on_border = vertices[unique[count == 1].long()]
    assert count.max() == 2
    assert ((on_border == 0).all(1) | (on_border == 1).all(1)).any(-1).all()


@pytest.mark.parametrize("helper_class", HELPERS)
def test_sphere_is_closed_outward_and_of_the_right_size(helper_class):
    helper = helper_class(48)
    mesh = as_trimesh(helper(sphere_level(helper.grid_vertices)))
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.euler_number == 2
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * RADIUS**3, rel=0.01)  # positive: outward
    assert mesh.area == pytest.approx(4 * math.pi * RADIUS**2, rel=0.01)


@pytest.mark.parametrize("helper_class", HELPERS)
def test_a_surface_through_grid_vertices_stays_closed_when_equal_points_are_merged(helper_class):
    helper = helper_class(17)
    level = (helper.grid_vertices - 0.5).abs().amax(-1, keepdim=True) - 0.25  # a box whose sides lie on the grid
    mesh = as_trimesh(helper(level))
    mesh.merge_vertices()
    assert mesh.is_watertight and mesh.volume == pytest.approx(0.125, rel=0.1)


@pytest.mark.parametrize("helper_class", HELPERS)
def test_random_field_is_closed_after_closing_the_border(helper_class):
    helper = helper_class(10)
    level = torch.randn(helper.grid_vertices.shape[0], 1, generator=torch.Generator().manual_seed(0))
    mesh = as_trimesh(helper(helper.close_border(level)))
    assert mesh.volume > 0
    if helper_class is MarchingTetrahedraHelper:  # no ambiguous cases: a manifold whatever the field
        assert mesh.is_watertight and mesh.is_winding_consistent


def test_vertices_move_with_the_level():
    """d vertex / d (constant added to the level) of a signed distance is minus the normal."""
    helper = MarchingTetrahedraHelper(64)
    offset = torch.zeros((), requires_grad=True)
    mesh = helper(sphere_level(helper.grid_vertices) + offset)
    radius = (mesh.v_pos - 0.5).norm(dim=-1).mean()
    (slope,) = torch.autograd.grad(radius, offset)
    assert slope.item() == pytest.approx(-1, abs=0.01)


def test_vertices_move_with_the_grid():
    helper = MarchingTetrahedraHelper(12)
    deformation = torch.zeros_like(helper.grid_vertices, requires_grad=True)
    level = sphere_level(helper.grid_vertices)
    mesh = helper(level, deformation=deformation)
    mesh.v_pos[:, 2].sum().backward()
    # A unit of deformation moves a vertex by 1 / resolution; each surface vertex's two ends share the motion.
    assert deformation.grad[:, 2].sum().item() == pytest.approx(mesh.v_pos.shape[0] / 12, rel=1e-4)
    assert (deformation.grad[:, :2] == 0).all()
    assert mesh.extras["grid_level"] is level


def test_gradcheck_of_marching_tetrahedra():
    vertices, tets = tetrahedral_lattice(2)
    level = torch.linspace(-1, 1.3, vertices.shape[0], dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v, l: marching_tetrahedra(v, tets, l)[0], (vertices.double().requires_grad_(), level)
    )


def test_a_planar_level_gives_a_plane():
    vertices, tets = tetrahedral_lattice(6)
    v_pos, t = marching_tetrahedra(vertices, tets, vertices[:, 0] + 0.5 * vertices[:, 1] - 0.777)
    torch.testing.assert_close(v_pos[:, 0] + 0.5 * v_pos[:, 1], torch.full((len(v_pos),), 0.777), atol=5e-4, rtol=0)
    normals = torch.linalg.cross(v_pos[t[:, 1]] - v_pos[t[:, 0]], v_pos[t[:, 2]] - v_pos[t[:, 0]])
    assert (normals @ torch.tensor([1.0, 0.5, 0.0]) >= -1e-9).all()  # towards the outside


def test_edges_of_the_lattice():
    helper = MarchingTetrahedraHelper(2)  # one cell: 8 corners and the centre
    edges = helper.all_edges
    # 12 edges of the cube, 6 diagonals of its faces, 8 to the centre.
    assert edges.shape == (26, 2) and (edges[:, 0] < edges[:, 1]).all()


@pytest.mark.parametrize("helper_class", HELPERS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_no_surface_is_an_error_with_the_range(helper_class, sign):
    helper = helper_class(4)
    with pytest.raises(EmptyFieldError, match="level in"):
        helper(sign * torch.ones(helper.grid_vertices.shape[0], 1))


@pytest.mark.parametrize("helper_class", HELPERS)
def test_impossible_resolution(helper_class):
    with pytest.raises(UserError, match="isosurface_resolution"):
        helper_class(1)


def two_spheres():
    big, small = trimesh.creation.icosphere(3), trimesh.creation.icosphere(1, radius=0.1)
    v = torch.cat([torch.tensor(big.vertices), torch.tensor(small.vertices) + 3]).float()
    f = torch.cat([torch.tensor(big.faces), torch.tensor(small.faces) + len(big.vertices)])
    return Mesh(v.requires_grad_(), f), len(big.vertices), len(big.faces)


def test_outliers_go_and_gradients_stay():
    mesh, n_vertices, n_faces = two_spheres()
    kept = mesh.remove_outlier(0.1)
    assert kept.v_pos.shape[0] == n_vertices and kept.t_pos_idx.shape[0] == n_faces
    assert as_trimesh(kept).is_watertight
    kept.v_pos.sum().backward()
    assert mesh.v_pos.grad.sum().item() == n_vertices * 3
    assert mesh.remove_outlier(10) is mesh  # both have at least ten faces
    assert mesh.remove_outlier(81).t_pos_idx.shape[0] == n_faces
    mesh.set_vertex_color(torch.rand(len(mesh.v_pos), 3))
    assert torch.equal(mesh.remove_outlier(0.1).v_rgb, mesh.v_rgb[:n_vertices])


def test_normals_edges_and_tangents_of_a_sphere():
    ball = trimesh.creation.icosphere(3)
    mesh = Mesh(torch.tensor(ball.vertices).float(), torch.tensor(ball.faces))
    torch.testing.assert_close(mesh.v_nrm, mesh.v_pos, atol=2e-2, rtol=0)
    assert mesh.edges.shape[0] == 3 * len(ball.faces) // 2
    assert mesh.t_tex_idx.shape == mesh.t_pos_idx.shape and mesh.v_tex.min() >= 0 and mesh.v_tex.max() <= 1
    assert (mesh.v_tng * mesh.v_nrm).sum(-1).abs().max() < 1e-5
    torch.testing.assert_close(mesh.v_tng.norm(dim=-1), torch.ones(len(mesh.v_pos)))


def test_smoothness_of_an_icosahedron():
    """Its five neighbours lie on a circle around each vertex, at cos = 1 / sqrt(5)."""
    solid = trimesh.creation.icosahedron()
    v = torch.tensor(solid.vertices)
    mesh = Mesh(v / v.norm(dim=-1, keepdim=True), torch.tensor(solid.faces))
    assert mesh.normal_consistency().item() == pytest.approx(1 - 5**-0.5)
    assert mesh.laplacian().item() == pytest.approx(5 - 5**0.5)


def test_tangent_follows_u():
    v = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    mesh = Mesh(v, torch.tensor([[0, 1, 2], [0, 2, 3]]))
    mesh.set_uv(v[:, [1, 0]], mesh.t_pos_idx)  # u along y
    torch.testing.assert_close(mesh.v_tng, torch.tensor([[0.0, 1, 0]]).expand(4, 3))


def test_wrong_meshes_and_options_are_refused():
    with pytest.raises(ValueError, match="v_pos"):
        Mesh(torch.zeros(3, 2), torch.zeros(1, 3).long())
    mesh, _, _ = two_spheres()
    with pytest.raises(ValueError, match="paddding"):
        mesh.unwrap_uv({}, {"paddding": 2})
    with pytest.raises(ValueError, match="v_rgb"):
        mesh.set_vertex_color(torch.zeros(2, 3))


@pytest.mark.parametrize("place", [0.0, 100.0])
def test_hollows_go_and_solids_stay(place):
    """A shell loses its inner surface; a second solid beside it, and one within the hollow, stay."""
    parts = [(1.0, 0.0, False), (0.8, 0.0, True), (0.3, 0.0, False), (0.5, 2.0, False)]  # radius, x, looks inwards
    v_pos, t_pos_idx, start = [], [], 0
    for radius, x, inwards in parts:
        ball = trimesh.creation.icosphere(2, radius=radius)
        v_pos.append(torch.tensor(ball.vertices) + torch.tensor([x + place, 0.0, 0.0]))
        faces = torch.tensor(ball.faces) + start
        t_pos_idx.append(faces.flip(1) if inwards else faces)
        start += len(ball.vertices)
    mesh = Mesh(torch.cat(v_pos).float().requires_grad_(), torch.cat(t_pos_idx))
    kept = mesh.remove_cavities()
    volumes = sorted(part.volume for part in as_trimesh(kept).split())
    assert volumes == pytest.approx([4 / 3 * math.pi * r**3 for r in (0.3, 0.5, 1.0)], rel=0.06)
    kept.v_pos.sum().backward()
    assert mesh.v_pos.grad.sum().item() == 3 * kept.v_pos.shape[0]
    assert kept.remove_cavities() is kept
