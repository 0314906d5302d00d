"""Hash grid, encodings, spherical harmonics and activations, in numbers that others have published or by hand."""

import math

import pytest
import torch
from turboprop.gaussians.spherical_harmonics import rgb_to_sh, sh_to_rgb

from threestudio.models.networks import get_encoding, get_mlp
from threestudio.ops.hash_grid import HashGridLayout, available_backends, hash_grid
from threestudio.ops.hash_grid.reference import entry_index
from threestudio.ops.spherical_harmonics import real_spherical_harmonics
from threestudio.utils.ops import get_activation

BACKENDS = list(available_backends(torch.device("cpu")))
THREESTUDIO = HashGridLayout(16, 2, 19, 16, 1.447269237440378)


def test_threestudios_grid_has_the_size_of_tiny_cuda_nns():
    """16 levels from 16 to 4096, 12,599,920 numbers: ScaleDreamer's Hyper-iNGP says so of tiny-cuda-nn's table."""
    levels = THREESTUDIO.levels
    assert [level.resolution for level in levels[:4]] == [16, 24, 34, 49]
    assert levels[-1].resolution == 4096 and levels[-1].scale == pytest.approx(4095, abs=0.05)
    assert THREESTUDIO.n_entries * 2 == 12_599_920
    assert [level.dense for level in levels[:7]] == [True] * 5 + [False] * 2  # 71^3 fits into 2^19, 102^3 does not
    assert levels[0].size == 16**3 and levels[2].size == 39304 and levels[-1].size == 2**19


def test_the_hash_of_a_vertex():
    """(1, 2, 3): 1 xor 2 * 2654435761 xor 3 * 805459861 in 32 bits (Mueller et al. 2022, equation 4)."""
    fine = THREESTUDIO.levels[-1]
    expected = (1 ^ 1013904226 ^ 2416379583) % 2**19
    assert entry_index(torch.tensor([1, 2, 3]), fine).item() == fine.offset + expected
    coarse = THREESTUDIO.levels[1]  # each vertex has an entry of its own: x fastest
    assert entry_index(torch.tensor([1, 2, 3]), coarse).item() == coarse.offset + 1 + 24 * (2 + 24 * 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_features_are_trilinear_between_vertices_at_half_cells(backend):
    """The vertices of one level of scale 3 lie at (i - 1/2) / 3: tiny-cuda-nn's half-cell shift."""
    layout = HashGridLayout(1, 1, 10, 4, 2.0)
    level = layout.levels[0]
    assert (level.scale, level.resolution, level.dense) == (3.0, 4, True)
    x = torch.arange(4.0).view(1, 1, 4).expand(4, 4, 4)
    y, z = x.transpose(1, 2), x.transpose(0, 2)
    table = (100 * x + 10 * y + z).reshape(64, 1)  # entry x + 4 (y + 4 z)
    positions = torch.tensor([[0.5, 0.5, 0.5], [1 / 6, 0.5, 5 / 6], [0.25, 0.3, 0.6]])
    vertex = positions * 3 + 0.5
    expected = vertex @ torch.tensor([100.0, 10.0, 1.0])
    torch.testing.assert_close(hash_grid(positions, table, layout, backend=backend)[:, 0], expected)


def test_nerfs_frequencies():
    """sin and cos of 2^k pi x, input by input, as in tiny-cuda-nn."""
    found = get_encoding(2, {"otype": "Frequency", "n_frequencies": 2})(torch.tensor([[0.25, 0.5]]))
    half = 0.5**0.5
    assert found[0].tolist() == pytest.approx([half, half, 1, 0, 1, 0, 0, -1], abs=1e-6)


def test_threestudios_progressive_frequencies():
    """sin and cos of 2^k x, without pi, band by band; a band of weight (1 - cos(pi clamp(progress N - k))) / 2."""
    encoding = get_encoding(2, {"otype": "ProgressiveBandFrequency", "n_frequencies": 2, "n_masking_step": 100})
    encoding.do_update_step(0, 75)  # progress 1.5: band 0 whole, band 1 half
    x, y = 0.3, 0.7
    sin, cos = math.sin, math.cos
    whole, half = [sin(x), sin(y), cos(x), cos(y)], [sin(2 * x), sin(2 * y), cos(2 * x), cos(2 * y)]
    assert encoding(torch.tensor([[x, y]]))[0].tolist() == pytest.approx([*whole, *(0.5 * v for v in half)], abs=1e-6)


def test_progressive_grids_open_as_published():
    """dreamfusion-sd: 8 levels at first, one more every 500 steps from step 2,000 on."""
    grid = get_encoding(3, {
        "otype": "ProgressiveBandHashGrid", "n_levels": 16, "n_features_per_level": 2, "log2_hashmap_size": 8,
        "base_resolution": 16, "per_level_scale": 1.447269237440378,
        "start_level": 8, "start_step": 2000, "update_steps": 500,
    })  # fmt: skip
    for step, level in {0: 8, 2499: 8, 2500: 9, 5999: 15, 6000: 16, 10000: 16}.items():
        grid.do_update_step(0, step)
        assert grid.encoding.current_level == level


CONSTANTS = {  # index: (value of the polynomial's factor, the polynomial), as tiny-cuda-nn's source has them
    0: (0.28209479177387814, lambda x, y, z: 1),
    1: (-0.48860251190291987, lambda x, y, z: y),
    2: (0.48860251190291987, lambda x, y, z: z),
    3: (-0.48860251190291987, lambda x, y, z: x),
    4: (1.0925484305920792, lambda x, y, z: x * y),
    5: (-1.0925484305920792, lambda x, y, z: y * z),
    6: (0.31539156525251999, lambda x, y, z: 3 * z * z - 1),
    7: (-1.0925484305920792, lambda x, y, z: x * z),
    8: (0.54627421529603959, lambda x, y, z: x * x - y * y),
    9: (0.59004358992664352, lambda x, y, z: y * (-3 * x * x + y * y)),
    10: (2.8906114426405538, lambda x, y, z: x * y * z),
    11: (0.45704579946446572, lambda x, y, z: y * (1 - 5 * z * z)),
    12: (0.3731763325901154, lambda x, y, z: z * (5 * z * z - 3)),
    13: (0.45704579946446572, lambda x, y, z: x * (1 - 5 * z * z)),
    14: (1.4453057213202769, lambda x, y, z: z * (x * x - y * y)),
    15: (0.59004358992664352, lambda x, y, z: x * (-x * x + 3 * y * y)),
}


def test_spherical_harmonics():
    direction = (2 / 7, -3 / 7, 6 / 7)
    found = real_spherical_harmonics(torch.tensor(direction, dtype=torch.float64), 4)
    assert found.tolist() == pytest.approx([factor * f(*direction) for factor, f in CONSTANTS.values()], rel=1e-12)


def test_the_encoding_takes_directions_from_the_unit_cube():
    found = get_encoding(3, {"otype": "SphericalHarmonics", "degree": 2})(torch.tensor([[0.5, 0.5, 1.0]]))  # (0, 0, 1)
    assert found[0].tolist() == pytest.approx([0.2820948, 0, 0.4886025, 0], abs=1e-6)


def test_gaussians_plain_colours():
    """Kerbl et al. 2023: colour = 1/2 + 0.2820948 sh."""
    assert sh_to_rgb(torch.tensor([1.0, 0.0])).tolist() == pytest.approx([0.7820948, 0.5])
    assert rgb_to_sh(torch.tensor([0.7820948])).item() == pytest.approx(1, abs=1e-6)


ACTIVATIONS = {  # name: (input, value, derivative)
    "none": (3.0, 3.0, 1.0),
    "exp": (1.0, math.e, math.e),
    "shifted_exp": (1.0, 1.0, 1.0),
    "trunc_exp": (2.0, math.exp(2), math.exp(2)),
    "shifted_trunc_exp": (3.0, math.exp(2), math.exp(2)),
    "sigmoid": (0.0, 0.5, 0.25),
    "sigmoid-mipnerf": (math.log(3), 0.75 * 1.002 - 0.001, 0.75 * 0.25 * 1.002),  # mip-NeRF's padding of colours
    "tanh": (0.0, 0.0, 1.0),
    "softplus": (0.0, math.log(2), 0.5),
    "shifted_softplus": (1.0, math.log(2), 0.5),
    "scale_-11_01": (-1.0, 0.0, 0.5),
    "lin2srgb": (0.5, 1.055 * 0.5 ** (1 / 2.4) - 0.055, 1.055 / 2.4 * 0.5 ** (1 / 2.4 - 1)),
    "relu": (-1.0, 0.0, 0.0),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    at, value, slope = ACTIVATIONS[name]
    x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    out = get_activation(name)(x)
    assert out.item() == pytest.approx(value, rel=1e-6, abs=1e-9)
    assert torch.autograd.grad(out, x)[0].item() == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_the_truncated_exponential_keeps_its_value_and_cuts_its_slope():
    x = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    out = get_activation("trunc_exp")(x)
    assert out.item() == pytest.approx(math.exp(20))
    assert torch.autograd.grad(out, x)[0].item() == pytest.approx(math.exp(15))


def test_srgb_near_black_is_linear():
    assert get_activation("lin2srgb")(torch.tensor([0.002, -1.0, 2.0])).tolist() == pytest.approx([12.92 * 0.002, 0, 1])


@pytest.mark.parametrize("inside_out", [False, True])
def test_a_network_that_starts_as_a_sphere(inside_out):
    """SAL, theorem 1: |x| - r of wide layers, and its negative inside out; far out, where softplus is as ReLU."""
    torch.manual_seed(0)
    options = {"n_neurons": 4096, "n_hidden_layers": 1, "sphere_init_radius": 0.5, "inside_out": inside_out}
    network = get_mlp(3, 1, {"otype": "SphereInitVanillaMLP", "output_activation": None, **options})
    points = torch.nn.functional.normalize(torch.randn(200, 3), dim=-1) * torch.tensor([5.0, 10.0]).repeat(100)[:, None]
    expected = (points.norm(dim=-1) - 0.5) * (-1 if inside_out else 1)
    assert ((network(points)[:, 0] - expected) / expected).abs().max() < 0.1
