"""All backends of the hash grid against the float64 torch reference, and the reference against arithmetic by hand."""


import pytest
import torch
import torch.nn.functional as F

from tests.ops.running import skips_without, stays_inside_its_arrays
from threestudio.ops.hash_grid import HashGridLayout, available_backends, hash_grid
from threestudio.ops.hash_grid.reference import entry_index
from threestudio.utils.errors import UserError

LAYOUT = HashGridLayout(n_levels=6, n_features=2, log2_hashmap_size=9, base_resolution=4, per_level_scale=1.6)
DEVICES = [torch.device("cpu"), pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]
BACKENDS = ["torch", "warp", "tinycudann"]


need = skips_without(available_backends)


def make(n=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(LAYOUT.n_entries, LAYOUT.n_features, generator=generator)
    return torch.rand(n, 3, generator=generator), table


def test_layout_has_dense_and_hashed_levels_of_the_published_sizes():
    assert [level.dense for level in LAYOUT.levels] == [True, True, False, False, False, False]
    assert [level.size for level in LAYOUT.levels] == [64, 344, 512, 512, 512, 512]
    full = HashGridLayout(16, 2, 19, 16, 1.447269237440378)
    assert full.levels[0].resolution == 16 and full.levels[0].size == 16**3
    assert full.levels[-1].resolution == 4096 and full.levels[-1].size == 2**19
    # Mueller et al. 2022, table 1: L = 16, T = 2^19 has 12.2 million parameters with this growth.
    assert 11e6 < full.n_entries * 2 < 13e6


def test_hash_is_the_published_one_in_32_bits():
    level = LAYOUT.levels[4]
    vertex = torch.tensor([[3, 5, 7], [4095, 4095, 4095]])
    expected = [
        level.offset + ((x ^ (y * 2654435761 % 2**32) ^ (z * 805459861 % 2**32)) % level.size) for x, y, z in vertex.tolist()
    ]
    assert entry_index(vertex, level).tolist() == expected
    assert entry_index(torch.tensor([[1, 2, 3]]), LAYOUT.levels[0]).tolist() == [1 + 4 * (2 + 4 * 3)]


def test_a_linear_function_on_a_dense_level_is_reproduced_exactly():
    layout = HashGridLayout(n_levels=1, n_features=1, log2_hashmap_size=12, base_resolution=9, per_level_scale=1.0)
    vertices = torch.cartesian_prod(*[torch.arange(9.0)] * 3).flip(-1)  # x fastest, as the table
    positions = (torch.rand(200, 3, generator=torch.Generator().manual_seed(1)) * 7.4) / 8.0
    slope = torch.tensor([1.0, -2.0, 0.5])
    table = torch.zeros(layout.n_entries, 1)
    table[:729, 0] = vertices @ slope
    for backend in available_backends(torch.device("cpu")):
        x = positions.clone().requires_grad_()
        out = hash_grid(x, table, layout, backend=backend)
        torch.testing.assert_close(out[:, 0], (x * 8 + 0.5) @ slope, atol=1e-5, rtol=1e-5)
        (gradient,) = torch.autograd.grad(out.sum(), x)
        torch.testing.assert_close(gradient, (8 * slope).expand_as(x), atol=1e-4, rtol=1e-4)


def derivatives(backend, dtype, device, n_active=5):
    """Values, position gradient, and all second derivatives of a loss on values and normals."""
    positions, table = make()
    x, t = (v.to(device, dtype).requires_grad_() for v in (positions, table))
    w = torch.linspace(-1, 1, LAYOUT.n_levels * LAYOUT.n_features, dtype=dtype, device=device).requires_grad_()
    out = hash_grid(x, t, LAYOUT, n_active, backend=backend)
    (slope,) = torch.autograd.grad((out.sin() * w).sum(), x, create_graph=True)
    loss = F.normalize(slope, dim=-1)[:, 0].sum() + 1e-4 * slope.square().sum() + out.square().sum()
    return [v.detach().double().cpu() for v in (out, slope, *torch.autograd.grad(loss, [x, t, w]))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_gradients_and_second_derivatives_match_float64(backend, device):
    need(backend, device)
    for name, got, expected in zip(
        ("values", "position gradient", "d/d positions", "d/d table", "d/d outer weights"),
        derivatives(backend, torch.float32, device),
        derivatives("torch", torch.float64, torch.device("cpu")),
    ):
        error = (got - expected).abs().max() / expected.abs().max()
        assert error < 5e-5, f"{backend}: {name}: relative error {error:.2e}"


def test_reference_passes_gradgradcheck():
    layout = HashGridLayout(2, 2, 4, 2, 1.5)
    generator = torch.Generator().manual_seed(2)
    table = torch.randn(layout.n_entries, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    # Away from cell borders, where the interpolation has kinks.
    x = (torch.tensor([[0.1, 0.2, 0.35], [0.3, 0.15, 0.05]], dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, t: hash_grid(x, t, layout, backend="torch"), (x, table))
    assert torch.autograd.gradgradcheck(lambda x, t: hash_grid(x, t, layout, backend="torch"), (x, table))


def test_warp_second_derivative_through_the_table_gradient():
    """d/d(everything) of a function of the table's gradient: the rarely walked branch."""
    need("warp", torch.device("cpu"))
    results = []
    for backend, dtype in (("torch", torch.float64), ("warp", torch.float32)):
        positions, table = make(50)
        x, t = positions.to(dtype).requires_grad_(), table.to(dtype).requires_grad_()
        out = hash_grid(x, t, LAYOUT, backend=backend)
        (slope,) = torch.autograd.grad(out.pow(3).sum(), t, create_graph=True)
        results.append([g.double() for g in torch.autograd.grad(slope.square().sum(), [x, t])])
    for expected, got in zip(*results):
        assert (got - expected).abs().max() / expected.abs().max() < 5e-5


def test_warp_makes_no_table_gradient_for_a_normal(monkeypatch):
    need("warp", torch.device("cpu"))
    from threestudio.ops.hash_grid import warp_backend

    made = []
    for name in ("_scatter", "_positions"):
        original = getattr(warp_backend, name)
        monkeypatch.setattr(warp_backend, name, lambda *a, name=name, original=original: made.append(name) or original(*a))
    positions, table = make(50)
    x, t = positions.requires_grad_(), table.requires_grad_()
    torch.autograd.grad(hash_grid(x, t, LAYOUT, backend="warp").sum(), x, create_graph=True)
    assert made == ["_positions"]
    hash_grid(x, t, LAYOUT, backend="warp").sum().backward()
    assert sorted(made[1:]) == ["_positions", "_scatter"]


def test_threads_change_nothing():
    need("warp", torch.device("cpu"))
    positions, table = make(5000)
    before, results = torch.get_num_threads(), []
    try:
        for n_threads in (1, 3):
            torch.set_num_threads(n_threads)
            x, t = positions.clone().requires_grad_(), table.clone().requires_grad_()
            out = hash_grid(x, t, LAYOUT, backend="warp")
            results.append([out, *torch.autograd.grad(out.square().sum(), [x, t])])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("backend", BACKENDS)
def test_closed_levels_give_zeros_and_no_gradient(backend):
    need(backend, torch.device("cpu"))
    positions, table = make()
    table.requires_grad_()
    out = hash_grid(positions, table, LAYOUT, n_active_levels=2, backend=backend)
    assert out.shape == (400, 12) and (out[:, 4:] == 0).all() and (out[:, :4] != 0).any()
    out.sum().backward()
    assert (table.grad[LAYOUT.levels[2].offset :] == 0).all() and (table.grad[:64] != 0).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_positions_outside_count_as_the_nearest_inside(backend):
    need(backend, torch.device("cpu"))
    _, table = make()
    outside = torch.tensor([[-1e9, 0.5, 2.0], [1e30, -0.1, 0.3], [float("inf"), float("-inf"), 1.0]], requires_grad=True)
    inside = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.0, 0.3], [1.0, 0.0, 1.0]])
    out = hash_grid(outside, table, LAYOUT, backend=backend)
    assert torch.equal(out, hash_grid(inside, table, LAYOUT, backend=backend))
    (gradient,) = torch.autograd.grad(out.sum(), outside)
    assert gradient[0, 0] == 0 and gradient[0, 2] == 0 and gradient[0, 1] != 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_positions_give_nan_and_touch_no_other_memory(backend):
    need(backend, torch.device("cpu"))
    positions, table = make(4)
    expected = hash_grid(positions, table, LAYOUT, backend=backend)
    positions[1, 1] = float("nan")
    out = hash_grid(positions, table, LAYOUT, backend=backend)
    assert out[1].isnan().all() and torch.equal(out[[0, 2, 3]], expected[[0, 2, 3]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_repeats_bit_for_bit_on_a_cpu(backend):
    need(backend, torch.device("cpu"))
    first, second = (derivatives(backend, torch.float32, torch.device("cpu")) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_no_points():
    _, table = make()
    for backend in available_backends(torch.device("cpu")):
        assert hash_grid(torch.zeros(0, 3), table, LAYOUT, backend=backend).shape == (0, 12)


def test_warp_kernels_stay_inside_their_arrays():
    need("warp", torch.device("cpu"))
    stays_inside_its_arrays("""
from threestudio.ops.hash_grid import HashGridLayout, hash_grid
layout = HashGridLayout(4, 2, 9, 16, 5.0)  # the finest vertices, 2000^3, are beyond int32
table = torch.randn(layout.n_entries, 2, requires_grad=True)
x = torch.cat([torch.rand(200, 3), torch.tensor([[0., 0, 0], [1, 1, 1], [-5, 2, float("nan")]])]).requires_grad_()
out = hash_grid(x, table, layout, backend="warp")
(slope,) = torch.autograd.grad(out[:-1].sum(), x, create_graph=True)
slope.square().sum().backward()
assert table.grad.abs().nansum() > 0
""")


@pytest.mark.parametrize(
    "change, message",
    [({"n_levels": 0}, "n_levels"), ({"log2_hashmap_size": 40}, "log2_hashmap_size"), ({"per_level_scale": 4.0, "n_levels": 16}, "per_level_scale")],
)
def test_impossible_layouts_are_refused_by_name(change, message):
    with pytest.raises(UserError, match=message):
        HashGridLayout(**change)


def test_wrong_arguments_are_refused_by_name():
    positions, table = make()
    with pytest.raises(UserError, match="backend.*cuda-magic"):
        hash_grid(positions, table, LAYOUT, backend="cuda-magic")
    with pytest.raises(ValueError, match="positions"):
        hash_grid(positions[:, :2], table, LAYOUT)
    with pytest.raises(ValueError, match="table"):
        hash_grid(positions, table[1:], LAYOUT)
    with pytest.raises(UserError, match="tinycudann.*not available"):
        hash_grid(positions, table, LAYOUT, backend="tinycudann")
