import math

import pytest
import torch
import torch.nn as nn
import trimesh

import threestudio
from threestudio.models.geometry.tetrahedra_sdf_grid import distance_like
from threestudio.models.isosurface import EmptyFieldError, MarchingTetrahedraHelper
from threestudio.utils.errors import UserError

GRID = {
    "otype": "HashGrid",
    "n_levels": 3,
    "n_features_per_level": 2,
    "log2_hashmap_size": 10,
    "base_resolution": 4,
    "per_level_scale": 1.5,
}
MLP = {"otype": "VanillaMLP", "activation": "ReLU", "output_activation": "none", "n_neurons": 16, "n_hidden_layers": 1}
NETS = {"pos_encoding_config": GRID, "mlp_network_config": MLP}


def grid(**config):
    torch.manual_seed(0)
    return threestudio.find("tetrahedra-sdf-grid")({"isosurface_resolution": 16, **NETS, **config})


def ball(**config):
    geometry = grid(shape_init="sphere", shape_init_params=0.6, **config)
    geometry.initialize_shape()
    return geometry


def solid(mesh):
    return trimesh.Trimesh(mesh.v_pos.detach().numpy(), mesh.t_pos_idx.numpy(), process=False)


def points(n=100):
    return (torch.rand(n, 3, generator=torch.Generator().manual_seed(1)) - 0.5) * 1.6


def volume_source(**config):
    """An implicit-volume whose level sets are balls: density 50 exp(-|x|^2 / (2 0.4^2))."""
    torch.manual_seed(0)
    source = threestudio.find("implicit-volume")(
        {
            "density_bias": "blob_dreamfusion",
            "density_blob_scale": 50,
            "density_blob_std": 0.4,
            "density_activation": None,
            **NETS,
            **config,
        }
    )
    nn.init.zeros_(source.density_network.layers[-1].weight)
    return source


VOLUME_RADIUS = 0.4 * math.sqrt(2 * math.log(2))  # where that density is 25


def sdf_source(**config):
    torch.manual_seed(0)
    source = threestudio.find("implicit-sdf")({"sdf_bias": "sphere", "sdf_bias_params": 0.5, **NETS, **config})
    nn.init.zeros_(source.sdf_network.layers[-1].weight)
    return source


# ----------------------------------------------------------------------------------------- surface


def test_ball():
    mesh = ball(isosurface_resolution=32).isosurface()
    assert solid(mesh).is_watertight and solid(mesh).euler_number == 2
    assert solid(mesh).volume == pytest.approx(4 / 3 * math.pi * 0.6**3, rel=0.02)
    assert mesh.v_pos.norm(dim=-1).sub(0.6).abs().max() < 0.01


@pytest.mark.parametrize("name", ["sdf", "deformation"])
def test_gradients_through_marching_tetrahedra_by_finite_differences(name):
    geometry = ball().double()
    parameter = getattr(geometry, name)
    generator = torch.Generator().manual_seed(0)
    along = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    weights = torch.randn(geometry.isosurface().v_pos.shape, generator=generator, dtype=torch.float64)

    def value(step):
        with torch.no_grad():
            parameter.add_(step * along)
            result = (geometry.isosurface().v_pos * weights).sum().item()
            parameter.sub_(step * along)
        return result

    (geometry.isosurface().v_pos * weights).sum().backward()
    step = 1e-6
    assert (parameter.grad * along).sum().item() == pytest.approx((value(step) - value(-step)) / (2 * step), rel=1e-4)


def test_a_fit_to_a_target_surface_moves_the_surface():
    geometry = ball()
    optimizer = torch.optim.Adam([geometry.sdf], lr=0.02)
    for _ in range(30):
        loss = (geometry.isosurface().v_pos.norm(dim=-1) - 0.4).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert geometry.isosurface().v_pos.norm(dim=-1).mean().item() == pytest.approx(0.4, abs=0.03)


def test_a_surface_that_reaches_the_border_is_closed():
    geometry = grid(shape_init="sphere", shape_init_params=1.2)
    geometry.initialize_shape()
    assert solid(geometry.isosurface()).is_watertight


def test_outliers_are_removed():
    geometry = ball(isosurface_remove_outliers=True, isosurface_outlier_n_faces_threshold=0.1)
    with torch.no_grad():
        geometry.sdf[geometry.isosurface_helper.grid_vertices.sub(0.06).norm(dim=-1).argmin()] = -0.1
    assert len(solid(geometry.isosurface()).split()) == 1
    geometry.cfg.isosurface_remove_outliers = False
    assert len(solid(geometry.isosurface()).split(only_watertight=False)) == 2


def test_features():
    geometry = ball()
    assert geometry(points())["features"].shape == (100, 3) and torch.equal(
        geometry.export(points())["features"], geometry(points())["features"]
    )
    bare = ball(geometry_only=True)
    assert bare(points()) == {} and {name.split(".")[0] for name in bare.state_dict()} == {
        "bbox",
        "isosurface_bbox",
        "sdf",
        "deformation",
    }
    assert "deformation" not in ball(isosurface_deformable_grid=False).state_dict()


def test_marching_twice_is_the_same_bit_for_bit():
    a, b = ball().isosurface(), ball().isosurface()
    assert torch.equal(a.v_pos, b.v_pos) and torch.equal(a.t_pos_idx, b.t_pos_idx)


# -------------------------------------------------------------------------------- fixed and loaded


def test_a_fixed_geometry_has_no_parameters_of_shape_and_one_mesh():
    source = ball()
    nn.init.normal_(source.deformation)
    fixed = grid(fix_geometry=True)
    fixed.load_state_dict(source.state_dict())  # parameters of one stage are buffers of the next, under the same names
    assert {name.split(".")[0] for name, _ in fixed.named_parameters()} == {"encoding", "feature_network"}
    assert (
        torch.equal(fixed.isosurface().v_pos, source.isosurface().v_pos.detach())
        and not fixed.isosurface().requires_grad
    )
    assert fixed.isosurface() is fixed.isosurface()
    other = ball()
    fixed.load_state_dict(other.state_dict())
    assert torch.equal(fixed.isosurface().v_pos, other.isosurface().v_pos.detach())
    again = grid(fix_geometry=True)
    again.load_state_dict(fixed.state_dict())
    assert torch.equal(again.isosurface().v_pos, fixed.isosurface().v_pos)


def test_shape_init_leaves_given_shapes_alone():
    source = ball()
    for forced in (False, True):
        given = grid(shape_init="sphere", shape_init_params=0.3, force_shape_init=forced)
        given.load_state_dict(source.state_dict())
        given.initialize_shape()
        assert torch.equal(given.sdf, source.sdf) != forced


def test_shape_init_of_a_mesh(tmp_path):
    for suffix in ("obj", "ply", "glb"):
        trimesh.creation.icosphere(3, radius=7.0).export(tmp_path / f"ball.{suffix}")
        geometry = grid(shape_init=f"mesh:{tmp_path}/ball.{suffix}", shape_init_params=0.7, isosurface_resolution=24)
        geometry.initialize_shape()
        assert solid(geometry.isosurface()).volume == pytest.approx(4 / 3 * math.pi * 0.7**3, rel=0.03)


# --------------------------------------------------------------------------------------- hand-over


def convert(source, copy_net=True, **config):
    return type(grid()).create_from(source, {"isosurface_resolution": 24, **NETS, **config}, copy_net=copy_net)


@pytest.mark.parametrize("make, radius", [(volume_source, VOLUME_RADIUS), (sdf_source, 0.5)])
def test_from_a_field(make, radius):
    source = make(isosurface_method="mc-cpu")
    geometry = convert(source)
    mesh = geometry.isosurface()
    assert solid(mesh).is_watertight and mesh.requires_grad
    # The same lattice and level as the source's own surface: the same surface.
    assert mesh.v_pos.norm(dim=-1).sub(radius).abs().max() < 0.02
    torch.testing.assert_close(geometry.isosurface_bbox[1], torch.full((3,), radius * 1.2), atol=0.05, rtol=0)
    assert geometry.sdf.abs().max() <= (1.0 if make is volume_source else 2.0)
    assert torch.equal(geometry(points())["features"], source(points())["features"])
    fresh = convert(source, copy_net=False)
    assert not torch.equal(fresh(points())["features"], source(points())["features"])
    assert torch.equal(fresh.isosurface().v_pos, mesh.v_pos)


def test_deformation_is_handed_over():
    source = sdf_source(isosurface_deformable_grid=True)
    nn.init.normal_(source.deformation_network.layers[-1].weight, std=3.0)
    nn.init.normal_(source.encoding.encoding.params)
    source.cfg.isosurface_resolution = 24
    torch.testing.assert_close(convert(source).isosurface().v_pos, source.isosurface().v_pos)
    assert convert(source, isosurface_deformable_grid=False).isosurface().v_pos.norm(dim=-1).sub(0.5).abs().max() < 0.02


def test_from_another_grid():
    source = ball()
    nn.init.normal_(source.deformation)
    copy = convert(source, isosurface_resolution=16, fix_geometry=True)
    assert torch.equal(copy.isosurface().v_pos, source.isosurface().v_pos.detach())
    assert torch.equal(copy(points())["features"], source(points())["features"])
    assert convert(ball(geometry_only=True), isosurface_resolution=16)(points())["features"].shape == (100, 3)
    with pytest.raises(UserError, match="isosurface_resolution: expected 16.*got 24"):
        convert(source)


def test_impossible_hand_overs():
    with pytest.raises(EmptyFieldError, match=r"isosurface_threshold=99.*\[.*, 50\]"):
        convert(volume_source(isosurface_threshold=99))
    with pytest.raises(TypeError, match="VolumeGrid"):
        convert(threestudio.find("volume-grid")({"grid_size": [4, 4, 4]}))
    with pytest.raises(UserError, match="geometry_convert_inherit_texture.*pos_encoding_config"):
        convert(volume_source(), pos_encoding_config={**GRID, "n_levels": 2})


def test_scaling_of_a_level_keeps_its_zero_set():
    helper = MarchingTetrahedraHelper(12)
    level = 300 * ((helper.grid_vertices - 0.5).norm(dim=-1, keepdim=True) - 0.3) ** 3 + 40 * (
        helper.grid_vertices[:, :1] - 0.4
    )
    scaled = distance_like(level, helper.all_edges)
    assert scaled.abs().max() <= 1
    before, after = helper(level).v_pos, helper(scaled).v_pos
    moved = (before - after).norm(dim=-1)
    assert (moved > 1e-6).float().mean() < 0.05 and moved.max() < 0.02


# --------------------------------------------------------------------------------------- bad input


def test_nothing_to_start_from_is_said():
    with pytest.raises(EmptyFieldError, match="shape_init, system.geometry_convert_from or weights"):
        grid().isosurface()


def test_too_thin_a_shape_is_said(monkeypatch):
    geometry = grid(shape_init="sphere", shape_init_params=0.01)
    moved = geometry.isosurface_helper.grid_vertices + 0.02  # no vertex at the centre
    monkeypatch.setattr(MarchingTetrahedraHelper, "grid_vertices", moved)
    with pytest.raises(EmptyFieldError, match="isosurface_resolution=16"):
        geometry.initialize_shape()


def test_a_resolution_that_no_memory_holds_is_refused_at_once():
    with pytest.raises(UserError, match=r"isosurface_resolution: 4096 needs .* of memory"):
        grid(isosurface_resolution=4096)
    with pytest.raises(UserError, match=r"isosurface_resolution: 40960 needs .* of memory"):
        sdf_source(isosurface_method="mc-cpu", isosurface_resolution=40960).isosurface()


@pytest.mark.parametrize(
    "config, message",
    [
        ({"isosurface_resolution": 1}, "at least 2"),
        ({"shape_init": "mesh:nowhere.glb"}, "not found"),
        ({"fix_geometri": True}, "fix_geometry"),
    ],
)
def test_bad_config(config, message):
    with pytest.raises(UserError, match=message):
        grid(**config)
