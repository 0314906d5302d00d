import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
import trimesh

import threestudio
from threestudio.models.geometry import shape_fit
from threestudio.models.geometry.shape_init import ShapeInitConfig, load_mesh, shape_distance
from threestudio.models.isosurface import EmptyFieldError
from threestudio.utils.errors import UserError

GRID = {
    "otype": "HashGrid",
    "n_levels": 4,
    "n_features_per_level": 2,
    "log2_hashmap_size": 12,
    "base_resolution": 4,
    "per_level_scale": 1.5,
}
PROGRESSIVE = {**GRID, "otype": "ProgressiveBandHashGrid", "start_level": 2, "start_step": 10, "update_steps": 5}
MLP = {"otype": "VanillaMLP", "activation": "ReLU", "output_activation": "none", "n_neurons": 32, "n_hidden_layers": 1}


def field(**config):
    torch.manual_seed(0)
    return threestudio.find("implicit-sdf")({"pos_encoding_config": GRID, "mlp_network_config": MLP, **config})


def ball(**config):
    """The bias alone: the exact distance to a ball."""
    geometry = field(sdf_bias="sphere", sdf_bias_params=0.5, **config)
    nn.init.zeros_(geometry.sdf_network.layers[-1].weight)
    return geometry


def points(n=200):
    return (torch.rand(n, 3, generator=torch.Generator().manual_seed(1)) - 0.5) * 1.6


def solid(mesh):
    return trimesh.Trimesh(mesh.v_pos.detach().numpy(), mesh.t_pos_idx.numpy(), process=False)


# ------------------------------------------------------------------------------------------- field


def test_a_piece_that_is_dropped_does_not_widen_the_fine_grid(monkeypatch):
    """A ball of radius 0.3 and a speck far away: the fine grid's step is that of the ball alone, as in threestudio."""
    geometry = field(
        isosurface_remove_outliers=True, isosurface_outlier_n_faces_threshold=0.1, isosurface_resolution=32
    )

    def distance(x):
        return torch.minimum(x.norm(dim=-1) - 0.3, (x - 0.8).norm(dim=-1) - 0.07)[..., None]

    monkeypatch.setattr(geometry, "forward_field", lambda x: (distance(x), None))
    mesh = geometry.isosurface()
    sides = mesh.extras["bbox"][1] - mesh.extras["bbox"][0]
    assert sides.max() < 1.25 * 0.6 and mesh.v_pos.norm(dim=-1).max() < 0.31
    geometry.cfg.isosurface_remove_outliers = False
    assert geometry.isosurface().v_pos.max() > 0.8


@pytest.mark.parametrize(
    "kind, tolerance", [("analytic", 1e-5), ("finite_difference_laplacian", 2e-3), ("finite_difference", 5e-2)]
)
def test_distance_and_gradient_of_a_ball(kind, tolerance):
    x = points()
    out = ball(normal_type=kind)(x, output_normal=True)
    torch.testing.assert_close(out["sdf"][:, 0], x.norm(dim=-1) - 0.5, atol=1e-5, rtol=0)
    torch.testing.assert_close(out["sdf_grad"], F.normalize(x, dim=-1), atol=tolerance, rtol=0)
    torch.testing.assert_close(out["normal"], F.normalize(x, dim=-1), atol=tolerance, rtol=0)
    assert out["features"].shape == (200, 3) and torch.equal(out["normal"], out["shading_normal"])


def test_analytic_gradients_match_central_differences_and_train_the_field():
    a, b = (
        field(normal_type="analytic"),
        field(normal_type="finite_difference_laplacian", finite_difference_normal_eps=1e-4),
    )
    nn.init.normal_(a.encoding.encoding.params, std=0.5)
    b.load_state_dict(a.state_dict())
    out = a(points(), True)
    cosine = F.cosine_similarity(out["sdf_grad"], b(points(), True)["sdf_grad"], dim=-1)
    assert cosine.median() > 0.9999 and cosine.mean() > 0.99  # a few points lie on cell borders
    ((out["sdf_grad"].norm(dim=-1) - 1) ** 2).mean().backward()  # the eikonal loss
    assert a.encoding.encoding.params.grad.abs().sum() > 0 and a.sdf_network.layers[0].weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert not any(v.requires_grad for v in a(points(), True).values())


def test_predicted_and_no_normals_and_features():
    assert field(normal_type="pred")(points(), True)["normal"].requires_grad
    assert "normal" not in field(normal_type=None)(points(), True)
    assert "features" not in field(n_feature_dims=0)(points()) and field(n_feature_dims=0).export(points()) == {}
    assert field().export(points())["features"].shape == (200, 3)


def test_bias_of_an_ellipsoid_is_a_distance_near_its_surface():
    geometry = field(sdf_bias="ellipsoid", sdf_bias_params=[0.6, 0.4, 0.3], normal_type="analytic")
    nn.init.zeros_(geometry.sdf_network.layers[-1].weight)
    surface = F.normalize(points(), dim=-1) * torch.tensor([0.6, 0.4, 0.3])
    out = geometry(surface, True)
    assert out["sdf"].abs().max() < 1e-5
    torch.testing.assert_close(out["sdf_grad"].norm(dim=-1), torch.ones(200), atol=1e-3, rtol=0)
    assert geometry.forward_sdf(torch.zeros(1, 3)).item() == pytest.approx(-0.3, abs=1e-4)


def test_progressive_eps_is_a_cell_of_the_finest_open_level():
    geometry = field(pos_encoding_config=PROGRESSIVE, finite_difference_normal_eps="progressive", radius=2.0)
    sizes = []
    for step in (0, 10, 15, 20, 99):
        geometry.do_update_step(0, step)
        sizes.append(geometry.finite_difference_normal_eps)
    assert sizes == pytest.approx([4 / (4 * 1.5**k) for k in (1, 1, 2, 3, 3)])


@pytest.mark.parametrize("method", ["mt", "mc-cpu"])
def test_isosurface_is_the_level_set(method):
    mesh = ball(isosurface_method=method, isosurface_resolution=32, isosurface_threshold=0.1).isosurface()
    assert solid(mesh).is_watertight and solid(mesh).volume == pytest.approx(4 / 3 * math.pi * 0.6**3, rel=0.02)
    assert mesh.requires_grad == (method == "mt")


def test_deformation_moves_the_grid_by_less_than_a_cell_and_learns():
    geometry = ball(isosurface_deformable_grid=True, isosurface_resolution=16)
    nn.init.normal_(geometry.deformation_network.layers[-1].weight, std=3.0)
    mesh = geometry.isosurface()
    mesh.v_pos[:, 0].sum().backward()
    assert geometry.deformation_network.layers[-1].weight.grad.abs().sum() > 0
    assert mesh.v_pos.norm(dim=-1).sub(0.5).abs().max() < 0.2


def test_no_surface_names_threshold_and_range():
    with pytest.raises(EmptyFieldError, match=r"isosurface_threshold=-2.*\["):
        ball(isosurface_threshold=-2, isosurface_resolution=8).isosurface()


def test_checkpoint_round_trip_and_copy():
    source = field(isosurface_deformable_grid=True)
    nn.init.normal_(source.encoding.encoding.params)
    other = field(isosurface_deformable_grid=True)
    other.load_state_dict(source.state_dict())
    copy = type(source).create_from(source, {"pos_encoding_config": GRID, "mlp_network_config": MLP})
    for again in (other, copy):
        for a, b in zip(source(points()).values(), again(points()).values()):
            assert torch.equal(a, b)
    with pytest.raises(TypeError, match="NoMaterial"):
        type(source).create_from(threestudio.find("no-material")({}))


def test_create_from_copies_the_network_of_normals_with_that_of_features():
    """As implicit-volume does: normals of a network are what the earlier stage has learned."""
    source = field(normal_type="pred")
    nn.init.normal_(source.normal_network.layers[-1].weight)
    config = {"pos_encoding_config": GRID, "mlp_network_config": MLP, "normal_type": "pred"}
    wanted = source(points(), output_normal=True)["normal"]
    copy = type(source).create_from(source, config)
    assert torch.equal(copy(points(), output_normal=True)["normal"], wanted)
    new = type(source).create_from(source, config, copy_net=False)
    assert not torch.equal(new(points(), output_normal=True)["normal"], wanted)


# ------------------------------------------------------------------------------------------- start


@pytest.fixture(autouse=True)
def small_fits(monkeypatch):
    for name, value in (("STEPS", 150), ("BATCH", 512), ("POOL", 2**13)):
        monkeypatch.setattr(shape_fit, name, value)


def block_file(tmp_path, name="block.ply", extents=(1.2, 0.8, 0.4)):
    path = tmp_path / name
    trimesh.creation.box(extents=extents).export(path)
    return str(path)


@pytest.mark.parametrize(
    "shape, params, distance",
    [
        ("sphere", 0.6, lambda x: x.norm(dim=-1) - 0.6),
        ("ellipsoid", [0.7, 0.5, 0.4], None),
        ("mesh", None, None),
    ],
)
def test_shape_init_is_followed(tmp_path, shape, params, distance):
    if shape == "mesh":
        shape = f"mesh:{block_file(tmp_path)}"
    geometry = field(shape_init=shape, shape_init_params=params, isosurface_resolution=24)
    geometry.initialize_shape()
    truth = shape_distance(ShapeInitConfig(shape, params), 1.0, torch.device("cpu"))(points())
    if distance is not None:
        torch.testing.assert_close(truth[:, 0], distance(points()), atol=1e-5, rtol=0)
    assert (geometry.forward_sdf(points()) - truth).abs().mean() < 0.03
    volume = {"s": 4 / 3 * math.pi * 0.6**3, "e": 4 / 3 * math.pi * 0.14, "m": 1.2 * 0.8 * 0.4}[shape[0]]
    assert solid(geometry.isosurface()).volume == pytest.approx(volume, rel=0.1)


def test_shape_init_is_deterministic_and_leaves_given_weights_alone(monkeypatch):
    monkeypatch.setattr(shape_fit, "STEPS", 20)

    def started(**config):
        geometry = field(shape_init="sphere", shape_init_params=0.5, **config)
        torch.manual_seed(3)
        geometry.initialize_shape()
        return geometry

    a, b = started(), started()
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
    before = a.encoding.encoding.params.detach().clone()
    a.initialize_shape()
    assert torch.equal(a.encoding.encoding.params, before)
    # Weights that are given, by whatever way, stay; but with force_shape_init.
    for forced in (False, True):
        given = field(shape_init="sphere", shape_init_params=0.2, force_shape_init=forced)
        nn.ModuleDict({"geometry": given}).load_state_dict({f"geometry.{k}": v for k, v in a.state_dict().items()})
        given.initialize_shape()
        assert torch.equal(given.encoding.encoding.params, before) != forced


def test_shape_init_with_only_the_open_levels():
    geometry = field(shape_init="sphere", shape_init_params=0.5, pos_encoding_config=PROGRESSIVE)
    layout = geometry.encoding.encoding.encoding.layout
    first_closed = layout.levels[2].offset
    before = geometry.encoding.encoding.encoding.params.detach().clone()
    geometry.initialize_shape()
    after = geometry.encoding.encoding.encoding.params.detach()
    assert torch.equal(after[first_closed:], before[first_closed:]) and not torch.equal(after, before)
    assert (geometry.forward_sdf(points())[:, 0] - points().norm(dim=-1) + 0.5).abs().mean() < 0.02


def test_mesh_axes_size_and_seams(tmp_path):
    path = tmp_path / "long.obj"
    trimesh.creation.box(
        extents=(1.0, 2.0, 4.0), transform=trimesh.transformations.translation_matrix([9, 9, 9])
    ).export(path)
    # The file's y points up and its z to the front.
    mesh = load_mesh(ShapeInitConfig(f"mesh:{path}", 0.8, "+y", "+z"), 1.0)
    torch.testing.assert_close(mesh.v_pos.abs().amax(0), torch.tensor([0.8, 0.2, 0.4]))
    assert solid(mesh).is_watertight and solid(mesh).volume == pytest.approx(8 * 0.4**3, rel=1e-5)
    # glTF says so itself.
    trimesh.creation.box(extents=(1.0, 2.0, 4.0)).export(tmp_path / "long.glb")
    mesh = load_mesh(ShapeInitConfig(f"mesh:{tmp_path / 'long.glb'}", 0.8), 1.0)
    torch.testing.assert_close(mesh.v_pos.abs().amax(0), torch.tensor([0.8, 0.2, 0.4]))
    # Turned inside out, and split at every face.
    box = trimesh.creation.box()
    torn = trimesh.Trimesh(
        box.vertices[box.faces[:, ::-1]].reshape(-1, 3), torch.arange(36).reshape(12, 3).numpy(), process=False
    )
    torn.export(tmp_path / "torn.ply")
    closed = solid(load_mesh(ShapeInitConfig(f"mesh:{tmp_path / 'torn.ply'}", 0.5), 1.0))
    assert closed.is_watertight and closed.volume == pytest.approx(1.0)


def test_distance_to_a_mesh(tmp_path):
    path = block_file(tmp_path)
    x = points()
    distance = shape_distance(ShapeInitConfig(f"mesh:{path}"), 1.0, torch.device("cpu"))(x)
    q = x.abs() - torch.tensor([0.6, 0.4, 0.2])
    truth = q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0)
    torch.testing.assert_close(distance[:, 0], truth, atol=1e-5, rtol=0)


def test_an_open_mesh_has_a_warning_and_an_inside(tmp_path):
    ball = trimesh.creation.icosphere(3, radius=0.5)
    ball.update_faces(ball.triangles_center[:, 2] < 0.47)
    path = tmp_path / "bowl.ply"
    ball.export(path)
    geometry = field(shape_init=f"mesh:{path}", isosurface_resolution=16)
    with _logged("not closed") as seen:
        geometry.initialize_shape()
    assert len(seen) == 1
    assert solid(geometry.isosurface()).volume == pytest.approx(4 / 3 * math.pi * 0.125, rel=0.1)


class _logged:
    """Collects the host's warnings that have a text."""

    def __init__(self, text):
        self.text, self.seen = text, []

    def __enter__(self):
        self._warn = threestudio.warn
        threestudio.warn = lambda message, *a, **k: self.seen.append(message) if self.text in message else None
        return self.seen

    def __exit__(self, *error):
        threestudio.warn = self._warn


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "config, message",
    [
        ({"normal_type": "numeric"}, "finite_difference"),
        ({"sdf_bias": "cube"}, "sphere or ellipsoid"),
        ({"sdf_bias": "sphere"}, "sdf_bias_params.*radius"),
        ({"sdf_bias": "ellipsoid", "sdf_bias_params": [1.0, 2.0]}, "three half axes"),
        ({"finite_difference_normal_eps": "progressive"}, "ProgressiveBandHashGrid, got HashGrid"),
        ({"finite_difference_normal_eps": 0.0}, "finite_difference_normal_eps"),
        ({"shape_init": "cube"}, "sphere, ellipsoid, mesh:<file>"),
        ({"shape_init": "sphere", "shape_init_params": -1.0}, "radius > 0, got -1"),
        ({"shape_init": "ellipsoid", "shape_init_params": 1.0}, "three half axes"),
        ({"shape_init": "mesh:nowhere.obj"}, "not found: nowhere.obj"),
        ({"shape_init_parms": 1.0}, "shape_init_params"),
    ],
)
def test_bad_config(config, message):
    with pytest.raises(UserError, match=message):
        field(**config)


def test_bad_meshes(tmp_path):
    block = block_file(tmp_path, extents=(9, 1, 1))
    with pytest.raises(UserError, match=r"reaches to 4.5, beyond geometry.radius=1.*shape_init_params=0.8"):
        field(shape_init=f"mesh:{block}").initialize_shape()
    with pytest.raises(UserError, match="expected its size"):
        field(shape_init=f"mesh:{block}", shape_init_params=[1, 2, 3])
    with pytest.raises(UserError, match="mesh_up: expected one of"):
        field(shape_init=f"mesh:{block}", shape_init_mesh_up="z")
    with pytest.raises(UserError, match="mesh_front.*other than"):
        field(shape_init=f"mesh:{block}", shape_init_mesh_front="-z")
    for name, content in (
        ("broken.ply", b"ply\nformat nonsense\n"),
        ("broken.glb", b"glTF"),
        ("empty.obj", b"# nothing\n"),
        ("file.what", b"?"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"shape_init.*{name}"):
            field(shape_init=f"mesh:{tmp_path / name}").initialize_shape()
