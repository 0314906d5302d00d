import math

import pytest
import torch
import torch.nn.functional as F

import threestudio
from threestudio.models.networks import create_network_with_input_encoding, get_encoding, get_mlp
from threestudio.utils.config import ExperimentConfig, parse_structured
from threestudio.utils.errors import UserError

GRID = {"n_levels": 4, "n_features_per_level": 2, "log2_hashmap_size": 8, "base_resolution": 4, "per_level_scale": 1.5}


def points(n=32):
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(0))


def test_frequency_by_hand():
    encoding = get_encoding(3, {"otype": "Frequency", "n_frequencies": 2})
    x = points()
    out = encoding(x)
    assert out.shape == (32, encoding.n_output_dims) == (32, 12)
    torch.testing.assert_close(out[:, 4], torch.sin(math.pi * x[:, 1]))
    torch.testing.assert_close(out[:, 5], torch.cos(math.pi * x[:, 1]))
    torch.testing.assert_close(out[:, 10], torch.sin(2 * math.pi * x[:, 2]))


def test_include_xyz_comes_first_scaled():
    x = points()
    out = get_encoding(3, {"otype": "SphericalHarmonics", "degree": 3, "include_xyz": True})(x)
    assert out.shape == (32, 12)
    torch.testing.assert_close(out[:, :3], 2 * x - 1)
    torch.testing.assert_close(out[:, 3], torch.full((32,), 0.5 / math.sqrt(math.pi)))


def test_progressive_frequency_fades_bands_in():
    encoding = get_encoding(3, {"otype": "ProgressiveBandFrequency", "n_frequencies": 4, "n_masking_step": 100})
    angle = points()[:, None] * 2.0 ** torch.arange(4)[:, None]  # [N, band, input]
    full = torch.stack([angle.sin(), angle.cos()], 2)
    for step, weights in ((0, [0, 0, 0, 0]), (25, [1, 0, 0, 0]), (37.5, [1, 0.5, 0, 0]), (500, [1, 1, 1, 1])):
        encoding.do_update_step(0, step)
        expected = full * torch.tensor(weights).float()[:, None, None]
        torch.testing.assert_close(encoding(points()), expected.reshape(32, -1))


def test_progressive_hash_grid_opens_levels():
    encoding = get_encoding(
        3, {"otype": "ProgressiveBandHashGrid", **GRID, "start_level": 2, "start_step": 10, "update_steps": 5}
    )
    for step, level in ((0, 2), (14, 2), (15, 3), (20, 4), (1000, 4), (0, 2)):
        encoding.do_update_step(0, step)
        assert encoding.encoding.current_level == level
        out = encoding(points())
        assert (out[:, : 2 * level] != 0).all() and (out[:, 2 * level :] == 0).all()
    assert encoding.encoding.grid_resolution == pytest.approx(4 * 1.5)


def test_hash_grid_starts_small():
    params = get_encoding(3, {"otype": "HashGrid", **GRID}).encoding.params
    assert 0 < params.abs().max() <= 1e-4 and params.mean().abs() < 2e-5


def test_vanilla_mlp_is_its_layers_without_bias():
    mlp = get_mlp(
        5,
        2,
        {
            "otype": "VanillaMLP",
            "activation": "ReLU",
            "output_activation": "sigmoid",
            "n_neurons": 7,
            "n_hidden_layers": 2,
        },
    )
    x = torch.randn(9, 5)
    w = [layer.weight for layer in mlp.layers]
    assert [tuple(v.shape) for v in w] == [(7, 5), (7, 7), (2, 7)] and len(list(mlp.parameters())) == 3
    torch.testing.assert_close(mlp(x), torch.sigmoid(torch.relu(torch.relu(x @ w[0].T) @ w[1].T) @ w[2].T))


def test_mlp_stays_in_float32_under_autocast():
    mlp = get_mlp(5, 2, {"otype": "VanillaMLP"})
    x = torch.randn(9, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mlp(x), mlp(x.float())) and mlp(x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("inside_out", [False, True])
def test_sphere_init_is_a_sphere(inside_out):
    torch.manual_seed(0)
    network = create_network_with_input_encoding(
        3,
        1,
        {"otype": "HashGrid", **GRID, "include_xyz": True},
        {
            "otype": "SphereInitVanillaMLP",
            "n_neurons": 256,
            "n_hidden_layers": 2,
            "sphere_init_radius": 0.6,
            "inside_out": inside_out,
        },
    )
    x = torch.rand(500, 3)
    expected = (2 * x - 1).norm(dim=-1) - 0.6
    got = network(x)[:, 0] * (-1 if inside_out else 1)
    # The theorem is about the mean over infinitely wide networks.
    assert (got - expected).abs().mean() < 0.12
    assert F.cosine_similarity(got - got.mean(), expected - expected.mean(), dim=0) > 0.93


@pytest.mark.parametrize(
    "config, message",
    [
        ({"otype": "HashGird"}, "HashGird.*nearest: HashGrid"),
        ({"otype": "HashGrid", "n_level": 4}, "n_level.*nearest: n_levels"),
        ({"otype": "SphericalHarmonics", "degree": 0}, "degree"),
        ({"otype": "ProgressiveBandHashGrid", **GRID}, "encoding.start_level: a value is required"),
        ({}, "encoding.otype: unknown encoding None"),
        ({"otype": "HashGrid", "n_levels": "3"}, "encoding.n_levels: expected a whole number from 1, got '3'"),
        ({"otype": "HashGrid", "n_levels": 65}, "encoding.n_levels: expected 1 to 64, got 65"),
        ({"otype": "HashGrid", "per_level_scale": "x"}, "encoding.per_level_scale: expected a number, got 'x'"),
        ({"otype": "HashGrid", "interpolation": "Cubic"}, "encoding.interpolation: expected Linear"),
        (
            {"otype": "Frequency", "n_frequencies": 2.5},
            "encoding.n_frequencies: expected a whole number from 0, got 2.5",
        ),
        ({"otype": "ProgressiveBandFrequency"}, "encoding.n_frequencies: a value is required"),
    ],
)
def test_wrong_encodings_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        get_encoding(3, config)


def test_errors_name_the_full_key():
    config = parse_structured(ExperimentConfig, {"tag": "t", "system": {"geometry": {"grid": {"otype": "Grid"}}}})
    with pytest.raises(UserError, match="^system.geometry.grid.otype: unknown encoding 'Grid'"):
        get_encoding(3, config.system.geometry.grid)


@pytest.mark.parametrize("name", ["nothing", "linear", "conv1d", "Tensor", "has_torch_function", 3])
def test_wrong_activations_are_refused(name):
    for key in ("activation", "output_activation"):
        with pytest.raises(UserError, match=rf"mlp_network_config.{key}: unknown activation '{name}'"):
            get_mlp(3, 1, {"otype": "VanillaMLP", key: name})


@pytest.mark.parametrize(
    "kind, key",
    [
        ("no-material", "material.color_activation"),
        ("diffuse-with-point-light-material", "material.albedo_activation"),
        ("textured-background", "background.color_activation"),
        ("neural-environment-map-background", "background.color_activation"),
        ("implicit-volume", "geometry.density_activation"),
        ("volume-grid", "geometry.density_activation"),
    ],
)
def test_an_activation_is_known_when_its_owner_is_built(kind, key):
    with pytest.raises(UserError, match=f"^{key}: unknown activation 'sigmoidd'; nearest: sigmoid"):
        threestudio.find(kind)({key.split(".")[1]: "sigmoidd"})


def test_wrong_networks_are_refused():
    with pytest.raises(UserError, match="VanilaMLP.*VanillaMLP"):
        get_mlp(3, 1, {"otype": "VanilaMLP"})
    with pytest.raises(UserError, match="n_neuron.*n_neurons"):
        get_mlp(3, 1, {"otype": "VanillaMLP", "n_neuron": 3})


HASH_GRIDS = ("HashGrid", "ProgressiveBandHashGrid")


@pytest.mark.parametrize("first, second", [HASH_GRIDS, HASH_GRIDS[::-1]])
def test_a_banded_and_a_plain_hash_grid_load_each_others_weights(first, second):
    """A first stage opens its grid level by level, the second takes it over whole (magic123, magic3d)."""
    grid = {"n_levels": 2, "n_features_per_level": 2, "log2_hashmap_size": 6, "base_resolution": 4}
    grid["per_level_scale"] = 2.0
    band = {"start_level": 2, "start_step": 0, "update_steps": 1}

    def encoding(otype):
        return get_encoding(3, {"otype": otype, **grid, **(band if otype.startswith("Progressive") else {})})

    torch.manual_seed(0)
    source, target = encoding(first), encoding(second)
    points = torch.rand(5, 3)
    assert not torch.equal(source(points), target(points))
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(points), target(points))
    with pytest.raises(RuntimeError, match="Missing key"):
        target.load_state_dict({})


@pytest.mark.parametrize("otype", ["VanillaMLP", "SphereInitVanillaMLP"])
@pytest.mark.parametrize(
    "given, message",
    [
        ({"n_neurons": 0}, "mlp_network_config.n_neurons: expected a whole number from 1, got 0"),
        ({"n_neurons": 2.5}, "mlp_network_config.n_neurons: expected a whole number from 1, got 2.5"),
        ({"n_neurons": "wide"}, "mlp_network_config.n_neurons: expected a whole number from 1, got 'wide'"),
        ({"n_hidden_layers": -1}, "mlp_network_config.n_hidden_layers: expected a whole number from 0, got -1"),
    ],
)
def test_sizes_of_no_network_are_refused(otype, given, message):
    with pytest.raises(UserError, match=message):
        get_mlp(3, 1, {"otype": otype, **given})
