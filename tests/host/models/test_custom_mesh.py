import numpy as np
import pytest
import scipy.sparse
import torch
import trimesh

import threestudio
from threestudio.models.mesh import Mesh
from threestudio.utils.errors import UserError

GRID = {
    "otype": "HashGrid",
    "n_levels": 3,
    "n_features_per_level": 2,
    "log2_hashmap_size": 10,
    "base_resolution": 4,
    "per_level_scale": 1.5,
}


@pytest.fixture()
def files(tmp_path):
    """A box of 2 x 1 x 0.5 off its origin in every format, and a ball."""
    box = trimesh.creation.box(extents=(2.0, 1.0, 0.5), transform=trimesh.transformations.translation_matrix([5, 0, 0]))
    for suffix in ("obj", "ply", "glb", "stl"):
        box.export(tmp_path / f"box.{suffix}")
    trimesh.creation.icosphere(2, radius=0.5).export(tmp_path / "ball.ply")
    return tmp_path


def mesh_of(path, **config):
    torch.manual_seed(0)
    return threestudio.find("custom-mesh")({"shape_init": f"mesh:{path}", "pos_encoding_config": GRID, **config})


@pytest.mark.parametrize("suffix", ["obj", "ply", "stl"])
def test_formats_size_and_place(files, suffix):
    mesh = mesh_of(files / f"box.{suffix}", shape_init_params=0.8).isosurface()
    torch.testing.assert_close(mesh.v_pos.abs().amax(0), torch.tensor([0.8, 0.4, 0.2]))
    solid = trimesh.Trimesh(mesh.v_pos.numpy(), mesh.t_pos_idx.numpy(), process=False)
    assert solid.is_watertight and solid.volume == pytest.approx(8 * 0.8 * 0.4 * 0.2, rel=1e-5)


def test_a_size_is_the_largest_coordinate_around_the_mean_of_the_vertices(tmp_path):
    """As in threestudio. A tetrahedron by hand: mean (1, 0.5, 0.5), so its tip at x = 4 is 3 away."""
    corners = [(4, 0, 0), (0, 2, 0), (0, 0, 2), (0, 0, 0)]
    faces = [(1, 3, 2), (1, 2, 4), (2, 3, 4), (3, 1, 4)]
    lines = [f"v {x} {y} {z}" for x, y, z in (*corners, corners[0])]  # a vertex twice counts once
    lines += [f"f {a} {b} {c}" for a, b, c in (*faces[:3], (3, 5, 4))]
    (tmp_path / "tetrahedron.obj").write_text("\n".join(lines))
    mesh = mesh_of(tmp_path / "tetrahedron.obj", shape_init_params=0.9).isosurface()
    expected = (torch.tensor(corners) - torch.tensor([1.0, 0.5, 0.5])) * 0.3
    assert torch.allclose(torch.unique(mesh.v_pos, dim=0), torch.unique(expected, dim=0), atol=1e-6)


def test_axes(files):
    # glTF: x to the left, y up, z to the front; so the file's (x, y, z) are the world's (y, z, x).
    torch.testing.assert_close(
        mesh_of(files / "box.glb", shape_init_params=0.8).isosurface().v_pos.abs().amax(0),
        torch.tensor([0.2, 0.8, 0.4]),
    )
    turned = mesh_of(
        files / "box.obj", shape_init_params=0.8, shape_init_mesh_up="+x", shape_init_mesh_front="-y"
    ).isosurface()
    torch.testing.assert_close(turned.v_pos.abs().amax(0), torch.tensor([0.4, 0.2, 0.8]))


def test_the_mesh_stands_where_its_file_has_it_without_a_size(files):
    ball = trimesh.load_mesh(files / "ball.ply")
    geometry = mesh_of(files / "ball.ply")
    assert sorted(map(tuple, geometry.isosurface().v_pos.tolist())) == sorted(
        map(tuple, ball.vertices.astype(np.float32).tolist())
    )
    with pytest.raises(UserError, match="reaches to 6.*shape_init_params=0.8"):
        mesh_of(files / "box.obj")


def test_only_the_features_learn_and_the_mesh_is_in_the_checkpoint(files):
    geometry = mesh_of(files / "ball.ply")
    x = geometry.isosurface().v_pos
    assert geometry.isosurface() is geometry.isosurface() and not geometry.isosurface().requires_grad
    geometry(x)["features"].sum().backward()
    assert {name.split(".")[0] for name, p in geometry.named_parameters() if p.grad is not None} == {
        "encoding",
        "feature_network",
    }
    other = mesh_of(files / "box.obj", shape_init_params=0.5)  # another file by now
    other.isosurface()
    other.load_state_dict(geometry.state_dict())
    assert torch.equal(other.isosurface().v_pos, x) and torch.equal(other(x)["features"], geometry(x)["features"])
    assert mesh_of(files / "ball.ply", n_feature_dims=0)(x) == {}


@pytest.mark.parametrize(
    "start, message",
    [("", "mesh:<file>"), ("sphere", "mesh:<file>"), ("mesh:", "not found"), ("mesh:no.obj", "no.obj")],
)
def test_bad_starts(start, message):
    with pytest.raises(UserError, match=message):
        threestudio.find("custom-mesh")({"shape_init": start})


# --------------------------------------------------------------- the losses that refine a mesh


def bumpy():
    ball = trimesh.creation.icosphere(2)
    noise = np.random.default_rng(0).normal(scale=0.05, size=ball.vertices.shape)
    return Mesh(torch.tensor(ball.vertices + noise, requires_grad=True), torch.tensor(ball.faces)), ball


def test_laplacian_is_the_sparse_matrix_formulation():
    mesh, ball = bumpy()
    edges = ball.edges_unique
    n = len(ball.vertices)
    adjacency = scipy.sparse.coo_matrix((np.ones(len(edges)), edges.T), shape=(n, n))
    adjacency = (adjacency + adjacency.T).tocsr()
    degree = np.asarray(adjacency.sum(1))
    v = mesh.v_pos.detach().numpy()
    assert mesh.laplacian().item() == pytest.approx(np.linalg.norm(adjacency @ v - degree * v, axis=1).mean())


def bends(ball, v):
    """For vertices v and the ball's faces, 1 - cos between the normals at each edge's ends."""
    normals = np.zeros_like(v)
    for face in ball.faces:
        area = np.cross(v[face[1]] - v[face[0]], v[face[2]] - v[face[0]])
        normals[face] += area
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return np.array([1 - normals[i] @ normals[j] for i, j in ball.edges_unique])


def edge_lengths(ball, v):
    return np.array([np.linalg.norm(v[i] - v[j]) for i, j in ball.edges_unique])


def test_normal_consistency_edge_by_edge():
    mesh, ball = bumpy()
    v = mesh.v_pos.detach().numpy()
    expected = np.average(bends(ball, v), weights=edge_lengths(ball, v))
    assert mesh.normal_consistency().item() == pytest.approx(expected)


def test_the_gradient_of_the_laplacian():
    mesh, _ = bumpy()
    along = torch.randn(mesh.v_pos.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def value(step):
        return Mesh(mesh.v_pos.detach() + step * along, mesh.t_pos_idx).laplacian().item()

    mesh.laplacian().backward()
    assert (mesh.v_pos.grad * along).sum().item() == pytest.approx((value(1e-6) - value(-1e-6)) / 2e-6, rel=1e-5)


def test_the_gradient_of_normal_consistency_takes_lengths_for_constants():
    mesh, ball = bumpy()
    along = torch.randn(mesh.v_pos.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = mesh.v_pos.detach().numpy()

    def value(step):
        return np.average(bends(ball, v + step * along.numpy()), weights=edge_lengths(ball, v))

    mesh.normal_consistency().backward()
    assert (mesh.v_pos.grad * along).sum().item() == pytest.approx((value(1e-6) - value(-1e-6)) / 2e-6, rel=1e-5)


def test_tiny_faces_pull_no_more_than_others():
    """A bumpy patch, ever smaller, amid large faces; in a plain mean it would pull by the inverse of its size."""
    generator = torch.Generator().manual_seed(0)
    bumps = 0.3 * torch.rand(19, 3, generator=generator, dtype=torch.float64)

    def largest_gradient(size):
        angles = torch.arange(6, dtype=torch.float64) * torch.pi / 3
        ring = torch.stack([angles.cos(), angles.sin(), 0 * angles], -1)
        patch = size * (torch.cat([torch.zeros(1, 3).double(), ring, 2 * ring]) + bumps[:13])
        v = torch.cat([patch, 5 * ring + bumps[13:]]).requires_grad_(True)
        i, j = torch.arange(6), (torch.arange(6) + 1) % 6
        faces = [torch.stack([torch.zeros_like(i), 1 + i, 1 + j], -1)]
        for inside, outside in ((1, 7), (7, 13)):
            faces.append(torch.stack([inside + i, outside + i, outside + j], -1))
            faces.append(torch.stack([inside + i, outside + j, inside + j], -1))
        Mesh(v, torch.cat(faces)).normal_consistency().backward()
        return v.grad.norm(dim=-1).max().item()

    assert largest_gradient(1e-3) < 2 * largest_gradient(1.0)
