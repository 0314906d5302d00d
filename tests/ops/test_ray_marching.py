"""Both backends of marching against a loop over steps, and against one another, sample by sample."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.ops.running import skips_without, stays_inside_its_arrays
from threestudio.ops.ray_marching import available_backends, march_occupied, reference
from threestudio.ops.ray_sampling import ray_aabb_intersect
from threestudio.utils.errors import UserError

BOX = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
BACKENDS = ["torch", "warp"]


need = skips_without(available_backends)


def rays(n=64, seed=0, distance=2.5):
    generator = torch.Generator().manual_seed(seed)
    o = F.normalize(torch.randn(n, 3, generator=generator), dim=-1) * distance
    return o, F.normalize(torch.randn(n, 3, generator=generator) * 0.5 - o, dim=-1)


def cells(resolution, share, seed=3):
    return torch.rand(resolution, resolution, resolution, generator=torch.Generator().manual_seed(seed)) < share


@pytest.mark.parametrize("backend", BACKENDS)
def test_exactly_the_samples_in_occupied_cells_are_kept(backend):
    need(backend)
    o, d = rays()
    t_min, t_max, _ = ray_aabb_intersect(o, d, BOX)
    binaries, step = cells(8, 0.3), 0.05
    got = march_occupied(o, d, t_min, t_max, step, binaries, BOX, backend)
    expected = []
    for n in range(o.shape[0]):
        for k in range(math.ceil((t_max[n] - t_min[n]).item() / step)):
            t = t_min[n] + k * step
            cell = ((o[n] + d[n] * (t + step / 2) + 1) / 2 * 8).long().clamp(0, 7)
            if binaries[tuple(cell.tolist())]:
                expected.append((n, t.item()))
    assert got.ray_indices.tolist() == [n for n, _ in expected]
    torch.testing.assert_close(got.t_starts, torch.tensor([t for _, t in expected]), atol=1e-5, rtol=0)
    torch.testing.assert_close(got.t_ends - got.t_starts, torch.full_like(got.t_ends, step), atol=1e-5, rtol=0)
    everything = march_occupied(o, d, t_min, t_max, step, None, BOX, backend)
    assert everything.ray_indices.numel() == sum(math.ceil((t_max[n] - t_min[n]).item() / step) for n in range(64))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("resolution, step", [(1, 0.1), (32, 0.0068), (128, 0.0037), (16, 0.4)])
def test_backends_agree_bit_for_bit(device, share, resolution, step):
    need("warp", device)
    o, d = rays(300, seed=resolution)
    axes = torch.eye(3).repeat(2, 1) * torch.tensor([1.0, 1, 1, -1, -1, -1])[:, None]
    # Along the axes, on the borders between cells, and from within.
    o = torch.cat([o, -2 * axes, 0.25 - 2 * axes, torch.zeros(6, 3)]).to(device)
    d = torch.cat([d, axes, axes, axes]).to(device)
    box = BOX.to(device) * torch.tensor([1.0, 0.7, 1.3], device=device)
    binaries = cells(resolution, share).to(device)
    t_min, t_max, _ = ray_aabb_intersect(o, d, box)
    t_min = t_min + torch.rand(t_min.shape[0], generator=torch.Generator().manual_seed(1)).to(device) * step
    expected, got = (march_occupied(o, d, t_min, t_max, step, binaries, box, backend) for backend in BACKENDS)
    assert all(torch.equal(a, b) for a, b in zip(expected, got))
    assert got.ray_indices.numel() == 0 if share == 0 else got.ray_indices.numel() > 0


def test_pieces_of_the_torch_backend_change_nothing(monkeypatch):
    o, d = rays()
    t_min, t_max, _ = ray_aabb_intersect(o, d, BOX)
    arguments = (o, d, t_min, t_max, 0.05, cells(8, 0.3), BOX, "torch")
    whole = march_occupied(*arguments)
    monkeypatch.setattr(reference, "CANDIDATES_AT_ONCE", 100)
    assert all(torch.equal(a, b) for a, b in zip(whole, march_occupied(*arguments)))


def test_threads_change_nothing():
    need("warp")
    o, d = rays(5000)
    t_min, t_max, _ = ray_aabb_intersect(o, d, BOX)
    before, results = torch.get_num_threads(), []
    try:
        for n_threads in (1, 3):
            torch.set_num_threads(n_threads)
            results.append(march_occupied(o, d, t_min, t_max, 0.02, cells(16, 0.1), BOX, "warp"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results)) and results[0].ray_indices.numel() > 10000


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_march(backend):
    need(backend)
    none = torch.zeros(0, 3)
    samples = march_occupied(none, none, none[:, 0], none[:, 0], 0.1, None, BOX, backend)
    assert [x.shape for x in samples] == [(0,)] * 3 and samples.ray_indices.dtype == torch.int64
    o, d = rays(4)
    t = torch.ones(4)
    for t_max in (t, t - 0.5, t * float("nan")):
        assert march_occupied(o, d, t, t_max, 0.1, None, BOX, backend).t_starts.numel() == 0
    assert march_occupied(o, d, t, t + 3, 0.1, cells(8, 0.0), BOX, backend).t_starts.numel() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_ray_with_nan_has_no_samples_and_leaves_the_others_alone(backend):
    need(backend)
    o, d = rays(8)
    expected = march_occupied(o, d, *ray_aabb_intersect(o, d, BOX)[:2], 0.05, cells(8, 0.5), BOX, backend)
    o[3, 1] = float("nan")
    d[5] = 0.0
    got = march_occupied(o, d, *ray_aabb_intersect(o, d, BOX)[:2], 0.05, cells(8, 0.5), BOX, backend)
    keep = (expected.ray_indices != 3) & (expected.ray_indices != 5)
    assert all(torch.equal(a[keep], b) for a, b in zip(expected, got)) and (~keep).any()


def test_impossible_arguments_are_refused_by_name():
    o, d = rays(4)
    near, far = torch.zeros(4), torch.ones(4)
    with pytest.raises(UserError, match="step length.*> 0"):
        march_occupied(o, d, near, far, 0.0, None, BOX)
    with pytest.raises(UserError, match="more than 1048576 steps"):
        march_occupied(o, d, near, far, 1e-9, None, BOX)
    with pytest.raises(UserError, match="more than 1048576 steps"):
        march_occupied(o, d, near, far * float("inf"), 0.1, None, BOX)
    with pytest.raises(UserError, match="backend.*cuda-magic"):
        march_occupied(o, d, near, far, 0.1, None, BOX, "cuda-magic")
    with pytest.raises(UserError, match="float32"):
        march_occupied(o.double(), d.double(), near.double(), far.double(), 0.1, None, BOX, "warp")


def test_kernels_stay_inside_their_arrays():
    need("warp")
    stays_inside_its_arrays("""
from threestudio.ops.ray_marching import march_occupied
generator = torch.Generator().manual_seed(0)
box = torch.tensor([[-1., -1, -1], [1, 1, 1]])
o, d = torch.randn(2, 400, 3, generator=generator)
o[0], d[1], o[2, 1], d[3, 0], o[4], d[5] = float("nan"), 0.0, float("inf"), float("nan"), 1e30, 1e-30
grid = torch.rand(8, 8, 8, generator=generator) < 0.3
# Far beyond the box on both sides, so that cells are clamped.
for binaries in (grid, torch.zeros_like(grid), None):
    got = march_occupied(o, d, torch.full((400,), -9.0), torch.full((400,), 9.0), 0.05, binaries, box, "warp")
    again = march_occupied(o, d, torch.full((400,), -9.0), torch.full((400,), 9.0), 0.05, binaries, box, "torch")
    assert all(torch.equal(a, b) for a, b in zip(got, again))
assert got.t_starts.numel() > 1000
""")
