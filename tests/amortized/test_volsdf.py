"""Sampling and compositing of many prompts' fields."""

import math

import pytest
import torch
from turboprop.amortized.volsdf import (
    Intervals,
    PackedSamples,
    composite,
    dense_slots,
    lattice_distance,
    propose_intervals,
    random_samples,
    weighty_samples,
)

from threestudio.models.renderers.surface_density import volsdf_density
from threestudio.ops.ray_sampling import ray_aabb_intersect

CUBE = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])


def ragged(seed: int = 0, rays: int = 7) -> tuple[PackedSamples, torch.Tensor, torch.Tensor]:
    """Rays of 0 to 9 samples; some rays have none."""
    torch.manual_seed(seed)
    counts = torch.randint(0, 10, (rays,))
    counts[2] = 0
    ray = torch.repeat_interleave(torch.arange(rays), counts)
    start = torch.cat([torch.rand(int(c), dtype=torch.float64).sort().values for c in counts])
    samples = PackedSamples(ray, start, start + 0.05 + 0.1 * torch.rand(len(ray), dtype=torch.float64))
    return samples, 8 * torch.rand(len(ray), dtype=torch.float64), torch.randn(len(ray), 3, dtype=torch.float64)


def cumprod_twin(samples: PackedSamples, density: torch.Tensor, values: torch.Tensor, rays: int) -> torch.Tensor:
    """Max 1995: T_i = prod (1 - alpha_j), ray by ray."""
    out = []
    for r in range(rays):
        mine = samples.ray == r
        alpha = 1 - torch.exp(-density[mine] * (samples.end - samples.start)[mine])
        before = torch.cat([alpha.new_ones(1), torch.cumprod(1 - alpha, 0)])[:-1]
        weight = (alpha * before)[:, None]
        out.append(torch.cat([(weight * values[mine]).sum(0), weight.sum(0)]))
    return torch.stack(out)


def test_composite_equals_the_products_of_transparencies():
    samples, density, values = ragged()
    results = []
    for function in (composite, cumprod_twin):
        d, v = density.clone().requires_grad_(), values.clone().requires_grad_()
        out = function(samples, d, v, 7)
        factor = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
        results.append([out, *torch.autograd.grad((out * factor).sum(), [d, v])])
    for ours, expected in zip(*results):
        assert torch.allclose(ours, expected, atol=1e-12)
    assert torch.equal(results[0][0][2], torch.zeros(4, dtype=torch.float64))  # the ray without samples


def test_composite_of_nothing():
    none = PackedSamples(torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0))
    assert torch.equal(composite(none, torch.zeros(0), torch.zeros(0, 3), 5), torch.zeros(5, 4))


def test_composite_of_a_homogeneous_slab_does_not_depend_on_the_cuts():
    for cuts in ([0, 1], [0, 0.1, 0.7, 1]):
        edges = torch.tensor(cuts, dtype=torch.float64)
        samples = PackedSamples(torch.zeros(len(edges) - 1, dtype=torch.int64), edges[:-1], edges[1:])
        out = composite(samples, torch.full((len(edges) - 1,), 2.0).double(), torch.ones(len(edges) - 1, 1).double(), 1)
        assert out[0].tolist() == pytest.approx([1 - math.exp(-2)] * 2)


def test_dense_slots():
    row, column, width = dense_slots(torch.tensor([1, 1, 1, 4, 5, 5]), 8)
    assert row.tolist() == [0, 0, 0, 1, 2, 2] and column.tolist() == [0, 1, 2, 0, 0, 1] and width == 3


def some_rays(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    origins = torch.randn(count, 3, generator=generator) * 1.5
    directions = torch.randn(count, 3, generator=generator)
    directions[count // 2 :] *= 0.4
    directions[count // 2 :] -= origins[count // 2 :]  # half of them about towards the centre
    directions[:20, 0], directions[20:30, 1:] = 0, 0  # along faces and edges of the cube
    return origins, torch.nn.functional.normalize(directions, dim=-1)


def sphere_lattices(radii: list[float], resolution: int = 24) -> torch.Tensor:
    line = (torch.arange(resolution) + 0.5) / resolution * 2 - 1
    z, y, x = torch.meshgrid(line, line, line, indexing="ij")
    return torch.stack([torch.stack([x, y, z]).norm(dim=0) - r for r in radii])


def proposals(min_weight: float, importance: int = 0, randomized: bool = False, **changes):
    origins, directions = some_rays(160, seed=1)
    options = dict(
        lattice=sphere_lattices([0.3, 0.7]), origins=origins, directions=directions,
        owner=torch.arange(2).repeat_interleave(80), radius=1.0, inv_std=25.0, num_samples=32,
        num_importance=importance, near=0.1, far=100.0, randomized=randomized,
    )  # fmt: skip
    return weighty_samples(propose_intervals(**{**options, **changes}), min_weight), options


def test_random_samples_stand_for_all_of_them():
    """Each of two rays' three samples is drawn equally often, with weight or without: a mean is of all of them."""
    edges = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.5, 1.5, 2.5, 3.5]])
    intervals = Intervals(torch.tensor([0, 2]), edges, torch.tensor([[0.0, 0.9, 0.0], [0.0, 0.0, 0.0]]))
    torch.manual_seed(0)
    drawn = random_samples(intervals, 60000)
    kinds, times = torch.stack([drawn.ray.float(), drawn.start, drawn.end], 1).unique(dim=0, return_counts=True)
    expected = [[ray, start + i, start + i + 1] for ray, start in ((0, 0.0), (2, 0.5)) for i in range(3)]
    assert kinds.tolist() == expected
    assert (times / 60000).tolist() == pytest.approx([1 / 6] * 6, abs=0.006)


@pytest.mark.parametrize("importance", [0, 16])
def test_nothing_is_left_out_at_weight_zero(importance):
    samples, options = proposals(0.0, importance)
    start, end, _ = ray_aabb_intersect(options["origins"], options["directions"], CUBE, 0.1, 100.0)
    counts = torch.bincount(samples.ray, minlength=160)
    assert torch.equal(counts, (end > start) * (32 + importance))
    for ray in torch.nonzero(end > start).squeeze(1)[:20]:  # they tile the ray's part in the box
        mine = samples.ray == ray
        assert torch.allclose(samples.start[mine][0], start[ray]) and torch.allclose(samples.end[mine][-1], end[ray])
        assert torch.equal(samples.start[mine][1:], samples.end[mine][:-1])
    assert bool((samples.ray.diff() >= 0).all())


def shade(samples: PackedSamples, options: dict) -> torch.Tensor:
    """A picture of the proposals' own estimate of the density: positions as colours."""
    points = options["origins"][samples.ray] + samples.middle[:, None] * options["directions"][samples.ray]
    distance = lattice_distance(options["lattice"], points, options["owner"][samples.ray])
    return composite(samples, volsdf_density(distance, 25.0), (points + 1) / 2, 160)


@pytest.mark.parametrize("randomized", [False, True])
def test_pruning_changes_a_picture_by_no_more_than_what_it_leaves_out(randomized):
    """n samples of weight less than m are left out of a ray: no channel in [0, 1] can change by more than n m."""
    pictures, kept = [], []
    for min_weight in (0.0, 2e-3):
        torch.manual_seed(0)
        samples, options = proposals(min_weight, randomized=randomized)
        pictures.append(shade(samples, options))
        kept.append(torch.bincount(samples.ray, minlength=160))
    dropped = kept[0] - kept[1]
    assert int(kept[1].sum()) < 0.3 * int(kept[0].sum())  # most of space is empty or hidden
    change = (pictures[0] - pictures[1]).abs().amax(1)
    assert bool((change <= dropped * 2e-3 + 1e-6).all())
    assert float(change.max()) < 0.03


def test_each_ray_asks_its_own_prompts_lattice():
    origins = torch.tensor([[2.0, 0, 0], [2.0, 0, 0]])
    directions = torch.tensor([[-1.0, 0, 0], [-1.0, 0, 0]])
    samples, _ = proposals(5e-2, origins=origins, directions=directions, owner=torch.tensor([0, 1]), inv_std=60.0)
    first = [float(samples.start[samples.ray == r].min()) for r in (0, 1)]
    assert first == pytest.approx([2 - 0.3, 2 - 0.7], abs=0.12)


def test_a_lattice_without_a_surface_has_no_samples():
    samples, _ = proposals(1e-3, lattice=torch.full((2, 24, 24, 24), 2.0))
    assert len(samples.ray) == 0
