"""A training step asks the grids once; what comes out is what separate look-ups give, values and gradients."""

import pytest
import torch
from turboprop.amortized import field as field_module
from turboprop.amortized import voxel_sampling
from turboprop.amortized.field import Field
from turboprop.amortized.volsdf import composite, propose_intervals, random_samples, weighty_samples
from turboprop.amortized.voxel_sampling import VoxelSpace, flatten_grids

from tests.amortized.scenes import give_heads_weights, rays, scene
from threestudio.models.renderers.surface_density import volsdf_density

OPTIONS = {"num_samples_per_ray": 24, "num_samples_per_ray_importance": 8, "min_weight": 1e-3, "eikonal_points": 200}


def made(**options):
    """A geometry, its renderer while training, two prompts' random fields whose table is a leaf, and rays."""
    shape, renderer = scene({**OPTIONS, **options})
    give_heads_weights(shape, 0.3)
    renderer.train()
    for module in (shape, renderer):
        module.double()
    with torch.no_grad():
        made = shape.generate_space_cache(torch.randn(2, 3).double(), torch.randn(2, 6).double())
    space = VoxelSpace(made.space.table.requires_grad_(), made.space.resolution)
    return shape, renderer, Field(shape.heads, space, made.radius), rays(2, 10, torch.double)


def separately(shape, renderer, field, batch) -> dict[str, torch.Tensor]:
    """The step with a look-up for each thing that is asked, in the order in which random numbers are drawn."""
    cfg, resolution, epsilon = renderer.cfg, field.space.resolution, shape.cfg.finite_difference_eps
    origins, directions = (batch[key].reshape(-1, 3) for key in ("rays_o", "rays_d"))
    owner = torch.arange(2).repeat_interleave(100)
    lattice = field.lattice(resolution)
    intervals = propose_intervals(
        lattice, origins, directions, owner, radius=1.0, inv_std=cfg.inv_std, num_samples=cfg.num_samples_per_ray,
        num_importance=cfg.num_samples_per_ray_importance, near=cfg.near_plane, far=cfg.far_plane, randomized=True,
    )  # fmt: skip
    samples = weighty_samples(intervals, cfg.min_weight)
    points, who = samples.points(origins, directions), owner[samples.ray]
    distance = field.signed_distance(points, who)
    color = torch.sigmoid(shape.heads.color(field.features(points, who)))
    values = torch.cat([color, samples.middle[:, None]], -1)
    pictures = composite(samples, volsdf_density(distance, cfg.inv_std), values, 200)
    if cfg.eikonal_at == "rays":
        drawn = random_samples(intervals, cfg.eikonal_points)
        points, who = drawn.points(origins, directions), owner[drawn.ray]
    if cfg.eikonal_at == "points":
        size = resolution**3
        close = torch.nonzero(lattice.reshape(-1).abs() < 3 / cfg.inv_std).squeeze(1)
        cells = torch.randint(2 * size, (cfg.eikonal_points,))
        cells[: cfg.eikonal_points // 2] = close[torch.randint(len(close), (cfg.eikonal_points // 2,))]
        who, cell = cells // size, cells % size
        corner = torch.stack([cell % resolution, cell // resolution % resolution, cell // resolution**2], -1)
        points = ((corner + torch.rand(len(cells), 3)) / resolution * 2 - 1).double()
    center = field.signed_distance(points, who)
    ahead = [field.signed_distance(points + epsilon * axis, who) for axis in torch.eye(3, dtype=points.dtype)]
    return {
        "comp_rgb_fg": pictures[:, :3],
        "depth": pictures[:, 3:4],
        "opacity": pictures[:, 4:],
        "sdf_grad": (torch.stack(ahead, -1) - center[:, None]) / epsilon,
    }


@pytest.mark.parametrize("eikonal_at", ["points", "samples", "rays"])
def test_values_and_gradients_are_those_of_separate_look_ups(eikonal_at):
    shape, renderer, cache, batch = made(eikonal_at=eikonal_at)
    parameters = [cache.space.table, *shape.heads.parameters()]
    results = []
    for which in ("one", "separate"):
        torch.manual_seed(5)
        if which == "one":
            out = renderer(**batch, space_cache=cache, bg_color=torch.zeros(2, 3, dtype=torch.double))
        else:
            out = separately(shape, renderer, cache, batch)
        parts = [out[key].reshape(-1, out[key].shape[-1]) for key in ("comp_rgb_fg", "depth", "opacity", "sdf_grad")]
        factors = [torch.linspace(-1, 1, part.numel(), dtype=part.dtype).view_as(part) for part in parts]
        total = sum((part * factor).sum() for part, factor in zip(parts, factors))
        results.append([*parts, *torch.autograd.grad(total, parameters)])
    for one, separate in zip(*results):
        torch.testing.assert_close(one, separate, rtol=1e-9, atol=1e-9)
    assert results[0][4].abs().max() > 1e-3


def counted(monkeypatch) -> list[int]:
    """The points of each look-up from now on."""
    asked, look_up = [], voxel_sampling.sample_grids

    def count(table, points, owner, resolution):
        asked.append(len(points))
        return look_up(table, points, owner, resolution)

    monkeypatch.setattr(voxel_sampling, "sample_grids", count)
    return asked


def test_a_step_is_one_look_up_of_four_queries_a_gradient(monkeypatch):
    _, renderer, cache, batch = made(eikonal_at="points", min_weight=0.0)
    asked = counted(monkeypatch)
    torch.manual_seed(5)
    renderer(**batch, space_cache=cache)
    samples = 200 * (24 + 8)  # all rays meet the cube
    assert asked == [samples + 4 * 200]

    _, renderer, cache, batch = made(eikonal_at="samples", min_weight=0.0)
    asked.clear()
    out = renderer(**batch, space_cache=cache)
    assert asked == [4 * samples] and out["sdf_grad"].shape == (samples, 3)

    _, renderer, cache, batch = made(eikonal_points=0, eikonal_at="samples", min_weight=0.0)
    asked.clear()
    assert "sdf_grad" not in renderer(**batch, space_cache=cache) and asked == [samples]


def test_a_picture_without_samples_has_its_eikonal_points_elsewhere():
    """Else the mean of no gradients would be NaN."""
    _, renderer, cache, batch = made(eikonal_at="samples")
    away = {"rays_o": batch["rays_o"], "rays_d": -batch["rays_d"]}
    out = renderer(**away, space_cache=cache)
    assert out["sdf_grad"].shape == (200, 3) and (out["opacity"] == 0).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_the_tables_gradient_comes_back_as_the_grids_lie(layout):
    grids = torch.randn(2, 3, 4, 4, 4, dtype=torch.double, requires_grad=True)
    seen = []
    copy = (grids * 1.0).contiguous(memory_format=layout)
    copy.register_hook(lambda gradient: seen.append(gradient.is_contiguous(memory_format=layout)))
    table = flatten_grids(copy)
    factor = torch.randn_like(table)
    (gradient,) = torch.autograd.grad((table * factor).sum(), grids)
    assert seen == [True]
    assert torch.equal(gradient, factor.reshape(2, 4, 4, 4, 3).permute(0, 4, 1, 2, 3))
    assert torch.autograd.gradgradcheck(lambda g: flatten_grids(g.contiguous(memory_format=layout)).square(), grids)


@pytest.mark.parametrize("resolution", [16, 10])
def test_a_lattice_in_pieces_is_that_of_all_points_at_once(monkeypatch, resolution):
    _, _, field, _ = made()
    line = ((torch.arange(resolution) + 0.5) / resolution * 2 - 1).double()
    z, y, x = torch.meshgrid(line, line, line, indexing="ij")
    points = torch.stack([x, y, z], -1).reshape(-1, 3)
    whole = torch.stack([field.signed_distance(points, torch.full((len(points),), prompt)) for prompt in range(2)])
    monkeypatch.setattr(field_module, "LATTICE_ROWS", {"cpu": 700})
    torch.testing.assert_close(field.lattice(resolution).reshape(2, -1), whole.detach(), rtol=1e-9, atol=1e-9)


def test_an_unknown_place_for_the_eikonal_is_refused():
    with pytest.raises(ValueError, match="renderer.eikonal_at: expected one of points, samples, rays, got 'cube'"):
        scene({"eikonal_at": "cube"})
