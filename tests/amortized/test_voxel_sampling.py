"""Interpolation in many grids at once against torch's grid_sample."""

import torch
import torch.nn.functional as F
from turboprop.amortized.voxel_sampling import corner_weights, flatten_grids, sample_grids


def twin(grids: torch.Tensor, points: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """Each point sampled from a copy of its own grid."""
    where = points[:, None, None, None]  # [M, 1, 1, 1, 3]
    out = F.grid_sample(grids[owner], where, mode="bilinear", padding_mode="border", align_corners=False)
    return out[:, :, 0, 0, 0]


def mixed(resolution: int, count: int = 120) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(resolution)
    grids = torch.randn(3, 4, *(resolution,) * 3, generator=generator, dtype=torch.float64)
    points = torch.rand(count, 3, generator=generator, dtype=torch.float64) * 2.6 - 1.3  # some beyond the cube
    return grids, points, torch.randint(3, (count,), generator=generator)


def test_values_and_gradients_of_mixed_owners():
    for resolution in (2, 5, 8):
        grids, points, owner = mixed(resolution)
        results = []
        for which in ("ours", "twin"):
            g, p = grids.clone().requires_grad_(), points.clone().requires_grad_()
            out = sample_grids(flatten_grids(g), p, owner, resolution) if which == "ours" else twin(g, p, owner)
            factor = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
            results.append([out, *torch.autograd.grad((out * factor).sum(), [g, p])])
        for ours, expected in zip(*results):
            assert torch.allclose(ours, expected, atol=1e-12)


def test_axes_are_z_y_x():
    grid = torch.zeros(1, 1, 4, 4, 4)
    grid[0, 0, 3, 1, 0] = 1  # z = 3, y = 1, x = 0
    point = torch.tensor([[0, 1, 3]]) * 0.5 - 0.75  # the centre of that voxel, as x, y, z
    assert sample_grids(flatten_grids(grid), point, torch.zeros(1, dtype=torch.int64), 4).item() == 1


def test_voxel_centres_give_their_values_back():
    grids, _, _ = mixed(4)
    line = (torch.arange(4, dtype=torch.float64) + 0.5) / 2 - 1
    z, y, x = torch.meshgrid(line, line, line, indexing="ij")
    points = torch.stack([x, y, z], -1).reshape(-1, 3)
    for prompt in range(3):
        values = sample_grids(flatten_grids(grids), points, torch.full((64,), prompt), 4)
        assert torch.allclose(values, grids[prompt].flatten(1).T)


def test_shares_sum_to_one_and_are_no_less_than_zero():
    points = torch.rand(1000, 3) * 4 - 2
    indices, weights = corner_weights(points, 6)
    assert torch.allclose(weights.sum(-1), torch.ones(1000)) and float(weights.min()) >= 0
    assert int(indices.min()) >= 0 and int(indices.max()) < 6**3
