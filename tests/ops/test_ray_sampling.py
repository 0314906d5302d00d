import pytest
import torch
import torch.nn.functional as F

from threestudio.ops.ray_sampling import (
    cell_of,
    distances_at_shares,
    importance_resample,
    ray_aabb_intersect,
    uniform_edges,
)

BOX = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])


def rays(n=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    o = F.normalize(torch.randn(n, 3, generator=generator), dim=-1) * 2.5
    return o, F.normalize(torch.randn(n, 3, generator=generator) * 0.5 - o, dim=-1)


def test_box_by_hand():
    o = torch.tensor([[-3.0, 0, 0], [-3, 0, 0], [0, 0, 0], [-3, 2, 0], [0, 0, 3], [-3, 1.0, 0]])
    d = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, -1], [1, 0, 0]])
    t_min, t_max, hit = ray_aabb_intersect(o, d, BOX)
    assert hit[:5].tolist() == [True, False, True, False, True]
    assert t_min[[0, 2, 4]].tolist() == [2, 0, 2] and t_max[[0, 2, 4]].tolist() == [4, 1, 4]
    assert (t_max[[1, 3]] == t_min[[1, 3]]).all()
    assert torch.isfinite(torch.cat([t_min, t_max])).all()
    t_min, t_max, _ = ray_aabb_intersect(o[:1], d[:1], BOX, near=2.5, far=3.0)
    assert (t_min.item(), t_max.item()) == (2.5, 3.0)


def test_ends_lie_on_the_box():
    o, d = rays()
    t_min, t_max, hit = ray_aabb_intersect(o, d, BOX)
    for t in (t_min[hit], t_max[hit]):
        on_box = (o[hit] + d[hit] * t[:, None]).abs().amax(-1)
        torch.testing.assert_close(on_box, torch.ones_like(on_box), atol=1e-5, rtol=0)


def test_a_box_equals_a_search_along_the_ray():
    generator = torch.Generator().manual_seed(0)
    origins, directions = (torch.randn(200, 3, generator=generator) for _ in range(2))
    origins *= 1.5
    directions[100:] = 0.4 * directions[100:] - origins[100:]  # about towards the centre
    directions[:20, 0], directions[20:30, 1:] = 0, 0  # along faces and edges of the box
    directions = F.normalize(directions, dim=-1)
    near, far, radius = 0.2, 3.0, 0.8
    start, end, found = ray_aabb_intersect(origins, directions, radius * BOX, near, far)
    t = torch.linspace(near, far, 5601)  # every 0.0005
    inside = ((origins[:, None] + t[:, None] * directions[:, None]).abs() <= radius).all(-1)
    hit = inside.any(1)
    assert 40 < int(hit.sum()) < 190 and bool(found[hit].all())
    length = (end - start)[hit]
    assert bool((length > -1e-3).all())
    first = t[inside[hit].float().argmax(1)]
    last = t[len(t) - 1 - inside[hit].flip(1).float().argmax(1)]
    assert torch.allclose(first, start[hit], atol=6e-4) and torch.allclose(last, end[hit], atol=6e-4)
    assert bool(((end - start)[~hit] < 1e-3).all())  # a corner less than a step wide may be missed


def test_rays_without_meaning_miss():
    nan, inf = float("nan"), float("inf")
    o = torch.tensor([[0.0, 0, 0], [0, nan, 0], [0, 0, 0], [inf, 0, 0], [0, 0, 0]])
    d = torch.tensor([[0.0, 0, 0], [1, 0, 0], [nan, 0, 1], [-1, 0, 0], [0, 0, 1]])
    _, _, hit = ray_aabb_intersect(o, d, BOX)
    assert hit.tolist() == [False, False, False, False, True]
    t_min, t_max, hit = ray_aabb_intersect(o[4:], d[4:], BOX, near=3.0, far=2.0)
    assert not hit.any() and torch.equal(t_min, t_max)


def test_cells():
    points = torch.tensor([[-1.0, -1, -1], [0.99, 0.99, 0.99], [1, 1, 1], [-1, -1, 1], [5, -5, 0]])
    assert cell_of(points, BOX, 4).tolist() == [0, 63, 63, 3, 3 * 16 + 0 + 2]
    huge = torch.tensor([[1e30, -1e30, float("nan")], [float("inf"), float("-inf"), 0]])
    assert cell_of(huge, BOX, 4).tolist() == [3 * 16, 3 * 16 + 2]


def test_uniform_edges():
    near, far = torch.tensor([0.5, 1.0]), torch.tensor([1.5, 1.0])
    edges = uniform_edges(near, far, 4, stratified=False)
    torch.testing.assert_close(edges[0], torch.tensor([0.5, 0.75, 1.0, 1.25, 1.5]))
    assert (edges[1] == 1).all()
    lindisp = uniform_edges(near, far, 4, stratified=False, lindisp=True)
    torch.testing.assert_close((1 / lindisp[0]).diff(), torch.full((4,), -(2 - 1 / 1.5) / 4))
    torch.manual_seed(0)
    jittered = uniform_edges(near, far, 4, stratified=True)
    assert (jittered.diff(dim=-1) >= 0).all() and jittered[0, 0] == 0.5 and jittered[0, -1] == 1.5
    assert not torch.equal(jittered, edges)


@pytest.mark.parametrize("stratified", [False, True])
def test_resampling_gives_equal_shares_of_the_weight(stratified):
    edges = torch.linspace(0, 1, 6)[None]
    weights = torch.tensor([[0.0, 1.0, 3.0, 0.0, 4.0]])
    torch.manual_seed(0)
    new = importance_resample(edges, weights, 8000, stratified)
    assert (
        new.shape == (1, 8001)
        and (new.diff(dim=-1) >= 0).all()
        and new[0, 0] == 0
        and abs(new[0, -1].item() - 1) < 1e-6
    )
    shares = torch.histogram(new[0], edges[0]).hist / 8001
    torch.testing.assert_close(shares, weights[0] / 8, atol=2e-3, rtol=0)


def test_resampling_without_weight_is_uniform():
    edges = torch.linspace(2, 4, 5).expand(3, -1)
    new = importance_resample(edges, torch.zeros(3, 4), 10, stratified=False)
    torch.testing.assert_close(new, torch.linspace(2, 4, 11).expand(3, -1), atol=1e-5, rtol=0)


def test_shares_lie_where_the_weights_are():
    edges = torch.linspace(0, 1, 11).expand(2, -1).contiguous()
    weights = torch.zeros(2, 10)
    weights[0, 3], weights[1, 0], weights[1, 9] = 1, 0.5, 0.5
    uniform = ((torch.arange(64) + 0.5) / 64).expand(2, -1)
    found = distances_at_shares(edges, weights, uniform)
    assert float(((found[0] > 0.3) & (found[0] < 0.4)).float().mean()) > 0.98
    assert bool((found.diff(dim=1) >= 0).all())
    low, high = (found[1] < 0.1).float().mean(), (found[1] > 0.9).float().mean()
    assert float(low) == pytest.approx(0.5, abs=0.03) and float(high) == pytest.approx(0.5, abs=0.03)
