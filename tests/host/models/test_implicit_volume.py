import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
import trimesh

import threestudio
from threestudio.models.geometry.base import BaseImplicitGeometry, contract_to_unisphere
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


def volume(**config):
    torch.manual_seed(0)
    return threestudio.find("implicit-volume")({"pos_encoding_config": GRID, "density_activation": None, **config})


def ball(**config):
    """Density scale exp(-|x|^2 / (2 std^2)) and nothing else: level sets are spheres."""
    geometry = volume(density_bias="blob_dreamfusion", density_blob_scale=50, density_blob_std=0.4, **config)
    nn.init.zeros_(geometry.density_network.layers[-1].weight)
    return geometry


def points(n=200):
    return (torch.rand(n, 3, generator=torch.Generator().manual_seed(1)) - 0.5) * 1.6


def test_density_biases_by_formula():
    x = points()
    torch.testing.assert_close(ball().forward_density(x)[:, 0], 50 * torch.exp(-x.square().sum(-1) / (2 * 0.16)))
    magic = volume(density_bias="blob_magic3d", density_blob_scale=10, density_blob_std=0.5)
    nn.init.zeros_(magic.density_network.layers[-1].weight)
    torch.testing.assert_close(magic.forward_density(x)[:, 0], 10 * (1 - x.norm(dim=-1) / 0.5), atol=1e-4, rtol=1e-5)
    flat = volume(density_bias=-1, density_activation="softplus")
    nn.init.zeros_(flat.density_network.layers[-1].weight)
    torch.testing.assert_close(flat.forward_density(x), torch.full((200, 1), math.log(1 + math.exp(-1))))


@pytest.mark.parametrize(
    "kind, tolerance", [("analytic", 1e-5), ("finite_difference_laplacian", 1e-3), ("finite_difference", 5e-2)]
)
def test_normals_of_a_ball_point_outwards(kind, tolerance):
    x = points()
    out = ball(normal_type=kind)(x, output_normal=True)
    assert out["density"].shape == (200, 1) and out["features"].shape == (200, 3)
    torch.testing.assert_close(out["normal"], F.normalize(x, dim=-1), atol=tolerance, rtol=0)
    assert torch.equal(out["normal"], out["shading_normal"])


def test_analytic_normals_train_the_field():
    geometry = volume(normal_type="analytic", density_activation="softplus")
    nn.init.normal_(geometry.encoding.encoding.params, std=0.5)
    out = geometry(points(), output_normal=True)
    out["normal"][:, 0].sum().backward()
    assert geometry.encoding.encoding.params.grad.abs().sum() > 0
    assert geometry.density_network.layers[0].weight.grad.abs().sum() > 0


def test_analytic_normals_match_central_differences_on_a_rough_field():
    a, b = (
        volume(normal_type="analytic"),
        volume(normal_type="finite_difference_laplacian", finite_difference_normal_eps=1e-4),
    )
    nn.init.normal_(a.encoding.encoding.params, std=0.5)
    b.load_state_dict(a.state_dict())
    cosine = F.cosine_similarity(a(points(), True)["normal"], b(points(), True)["normal"], dim=-1)
    assert cosine.median() > 0.9999 and cosine.mean() > 0.99  # a few points lie on cell borders


def test_without_gradients_nothing_keeps_a_graph():
    with torch.no_grad():
        out = ball(normal_type="analytic")(points(), output_normal=True)
    assert not any(v.requires_grad for v in out.values())
    torch.testing.assert_close(out["normal"], F.normalize(points(), dim=-1), atol=1e-5, rtol=0)


def test_no_normals_and_predicted_ones():
    assert "normal" not in ball(normal_type=None)(points(), output_normal=True)
    out = volume(normal_type="pred")(points(), output_normal=True)
    assert out["normal"].requires_grad
    assert "features" not in volume(n_feature_dims=0)(points())


@pytest.mark.parametrize("method", ["mt", "mc-cpu"])
def test_isosurface_is_the_level_set(method):
    geometry = ball(isosurface_method=method, isosurface_resolution=48, isosurface_threshold=25)
    mesh = geometry.isosurface()
    radius = 0.4 * math.sqrt(2 * math.log(2))
    solid = trimesh.Trimesh(mesh.v_pos.detach().numpy(), mesh.t_pos_idx.numpy(), process=False)
    assert solid.is_watertight and solid.volume == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.01)
    assert mesh.v_pos.norm(dim=-1).sub(radius).abs().max() < 0.01
    assert mesh.requires_grad == (method == "mt")
    # The second pass looks closer: its box is a tenth wider on each side than the ball.
    torch.testing.assert_close(mesh.extras["bbox"][1], torch.full((3,), radius * 1.2), atol=0.02, rtol=0)


def test_isosurface_with_chunks_is_the_same():
    a = ball(isosurface_resolution=16).isosurface()
    b = ball(isosurface_resolution=16, isosurface_chunk=100).isosurface()
    torch.testing.assert_close(a.v_pos, b.v_pos)
    assert torch.equal(a.t_pos_idx, b.t_pos_idx)


@pytest.mark.parametrize("method", ["mt", "mc-cpu"])
def test_a_field_that_fills_the_box_is_closed_at_its_border(method):
    mesh = ball(isosurface_method=method, isosurface_resolution=16, isosurface_threshold=1e-3, radius=0.5).isosurface()
    solid = trimesh.Trimesh(mesh.v_pos.detach().numpy(), mesh.t_pos_idx.numpy(), process=False)
    assert solid.is_watertight and 0.7 < solid.volume <= 1.0


def test_isosurface_threshold_auto_and_empty_fields():
    assert ball(isosurface_resolution=16, isosurface_threshold="auto").isosurface().v_pos.shape[0] > 100
    with pytest.raises(EmptyFieldError, match=r"isosurface_threshold=99.*\[.*, 50\]"):
        ball(isosurface_resolution=17, isosurface_threshold=99, isosurface_method="mc-cpu").isosurface()
    empty = volume(density_bias=-1.0, isosurface_resolution=8, isosurface_threshold="auto")
    with pytest.raises(EmptyFieldError, match="auto"):
        empty.isosurface()
    with pytest.raises(UserError, match="isosurface=false"):
        ball(isosurface=False).isosurface()


def test_create_from_copies_the_field():
    source = volume()
    nn.init.normal_(source.encoding.encoding.params)
    copy = type(source).create_from(source, {"pos_encoding_config": GRID, "density_activation": None})
    for a, b in zip(source(points()).values(), copy(points()).values()):
        torch.testing.assert_close(a, b)
    with pytest.raises(TypeError, match="NoMaterial"):
        type(source).create_from(threestudio.find("no-material")({}))
    with pytest.raises(TypeError):
        BaseImplicitGeometry.create_from(source)


def test_create_from_copies_the_network_of_normals_with_that_of_features():
    """Normals of a network, too, are what the earlier stage has learned; without copy_net both networks are new."""
    source = volume(normal_type="pred")
    nn.init.normal_(source.normal_network.layers[-1].weight)
    config = {"pos_encoding_config": GRID, "density_activation": None, "normal_type": "pred"}

    def normals(geometry):
        return geometry(points(), output_normal=True)["normal"]

    assert torch.equal(normals(type(source).create_from(source, config)), normals(source))
    assert not torch.equal(normals(type(source).create_from(source, config, copy_net=False)), normals(source))
    without = volume(normal_type=None)  # has none to copy
    assert normals(type(source).create_from(without, config)).shape == (200, 3)


def test_contraction():
    box = torch.tensor([[-2.0] * 3, [2.0] * 3])
    x = torch.tensor([[0.0, 0, 0], [2, -2, 1], [0, 0, 4.0], [0, 0, 1e9]])
    torch.testing.assert_close(contract_to_unisphere(x, box)[1], torch.tensor([1.0, 0, 0.75]))
    unbounded = contract_to_unisphere(x, box, unbounded=True)
    torch.testing.assert_close(unbounded[0], torch.full((3,), 0.5))
    torch.testing.assert_close(unbounded[2], torch.tensor([0.5, 0.5, 0.5 + 1.5 / 4]))
    torch.testing.assert_close(unbounded[3], torch.tensor([0.5, 0.5, 1.0]))


@pytest.mark.parametrize(
    "config, message",
    [
        ({"normal_type": "analytical"}, "normal_type.*analytic"),
        ({"density_bias": "blob"}, "density_bias.*blob_magic3d"),
        ({"radius": 0}, "radius"),
        ({"isosurface_method": "mc"}, "isosurface_method"),
        ({"isosurface_threshold": "automatic"}, "isosurface_threshold"),
        ({"anneal_density_blob_std_config": {"min_anneal_step": 1}}, "max_anneal_step"),
        ({"densty_bias": 1.0}, "densty_bias.*density_bias"),
    ],
)
def test_wrong_configs_are_refused_by_name(config, message):
    with pytest.raises(UserError, match=message):
        volume(**config)


@pytest.mark.parametrize("method", ["mt", "mc-cpu"])
def test_an_isosurface_that_no_memory_holds_is_refused_before_training(method):
    with pytest.raises(UserError, match="geometry.isosurface_resolution: 20000 needs .* GB of memory"):
        threestudio.find("implicit-volume")({"isosurface_resolution": 20000, "isosurface_method": method})


@pytest.mark.parametrize("method", ["mt", "mc-cpu"])
def test_a_hollow_inside_is_left_out_where_asked_for(method, monkeypatch):
    def shell(points):
        distance = points.norm(dim=-1, keepdim=True)
        return (0.15 - (distance - 0.45).abs()).clamp_min(0), None

    surfaces = []
    for remove in (False, True):
        keys = {"isosurface_threshold": 0.05, "isosurface_resolution": 32, "isosurface_method": method}
        geometry = volume(isosurface_remove_cavities=remove, **keys)
        monkeypatch.setattr(geometry, "forward_field", shell)
        mesh = geometry.isosurface()
        surfaces.append(trimesh.Trimesh(mesh.v_pos.detach(), mesh.t_pos_idx))
    hollow, solid = surfaces
    assert hollow.body_count == 2 and solid.body_count == 1
    assert solid.is_watertight and solid.volume == pytest.approx(4 / 3 * math.pi * 0.55**3, rel=0.05)
    assert solid.volume - hollow.volume == pytest.approx(4 / 3 * math.pi * 0.35**3, rel=0.1)
