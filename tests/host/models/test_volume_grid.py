import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
import trimesh

import threestudio
from threestudio.models.geometry.volume_grid import trilinear
from threestudio.models.isosurface import EmptyFieldError
from threestudio.utils.errors import UserError


def volume(**config):
    return threestudio.find("volume-grid")({"grid_size": [12, 10, 8], **config})


def rough(**config):
    geometry = volume(**config)
    nn.init.normal_(geometry.grid, generator=torch.Generator().manual_seed(0))
    return geometry


def points(n=200, side=1.6):
    return (torch.rand(n, 3, generator=torch.Generator().manual_seed(1)) - 0.5) * side


def test_the_empty_grid_is_the_blob():
    x = points()
    blob = volume(density_activation=None, density_blob_scale=7.0, density_blob_std=0.4).forward_density(x)
    torch.testing.assert_close(blob[:, 0], 7 * (1 - x.norm(dim=-1) / 0.4), atol=1e-4, rtol=1e-5)
    flat = volume(density_bias=-1).forward_density(x)
    torch.testing.assert_close(flat, torch.full((200, 1), math.log(1 + math.exp(-1))))


def test_a_linear_grid_is_interpolated_exactly_along_its_axes():
    geometry = volume(density_activation=None, density_bias=0.0, n_feature_dims=3, radius=2.0, normal_type="analytic")
    nz, ny, nx = geometry.grid.shape[2:]
    centres = [(torch.arange(n) + 0.5) / n * 4 - 2 for n in (nx, ny, nz)]
    z, y, x = torch.meshgrid(centres[2], centres[1], centres[0], indexing="ij")
    with torch.no_grad():
        geometry.grid[0] = torch.stack([2 * x - y + 3 * z, x, y, z])
    at = points(side=3.0)
    out = geometry(at, output_normal=True)
    torch.testing.assert_close(out["features"], at, atol=1e-5, rtol=0)
    torch.testing.assert_close(out["density"], at @ torch.tensor([[2.0], [-1.0], [3.0]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        out["normal"], -F.normalize(torch.tensor([[2.0, -1.0, 3.0]]), dim=-1).expand(200, 3), atol=1e-5, rtol=0
    )


def test_twice_differentiable_interpolation_is_grid_sample():
    grid = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = points(side=1.3).double() + 0.5  # beyond the border, too
    expected = F.grid_sample(grid[None], (unit * 2 - 1)[None, None, None], align_corners=False, padding_mode="border")[
        0, :, 0, 0
    ].T
    torch.testing.assert_close(trilinear(grid, unit), expected)
    inside = points(6, side=0.5).double().add(0.5).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda u: trilinear(grid, u), (inside,))


def test_differences_for_normals_are_a_thousandth_long_by_default():
    """Beside the tip of the blob, a cone, the normal tells the length of the steps.

    Three thousandths from the tip along x, a step of one thousandth lengthens the distance to it by 1 along x, and by
    sqrt(3^2 + 1) - 3 along y and z. threestudio's volume-grid has this length and no key for it.
    """
    geometry = volume(normal_type="finite_difference", density_activation=None)
    out = geometry(torch.tensor([[3e-3, 0.0, 0.0]]), output_normal=True)
    sideways = math.sqrt(10.0) - 3.0
    expected = F.normalize(torch.tensor([[1.0, sideways, sideways]]), dim=-1)
    torch.testing.assert_close(out["normal"], expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("kind", ["finite_difference", "finite_difference_laplacian", "analytic", "pred"])
def test_normals(kind):
    geometry = rough(normal_type=kind, finite_difference_normal_eps=1e-3)
    out = geometry(points(), output_normal=True)
    if kind == "pred":
        geometry = rough(normal_type="pred")
        nn.init.normal_(geometry.normal_grid)
        assert geometry(points(), output_normal=True)["normal"].requires_grad
        return
    reference = rough(normal_type="analytic")(points(), output_normal=True)["normal"]
    assert F.cosine_similarity(out["normal"], reference, dim=-1).median() > 0.999
    out["normal"][:, 0].sum().backward()
    assert geometry.grid.grad[:, :1].abs().sum() > 0


def test_surface_checkpoint_and_resampling():
    geometry = volume(
        density_activation=None,
        density_blob_scale=50.0,
        density_blob_std=0.4,
        isosurface_threshold=25.0,
        isosurface_resolution=24,
    )
    solid = geometry.isosurface()
    radius = 0.4 / 2
    mesh = trimesh.Trimesh(solid.v_pos.detach().numpy(), solid.t_pos_idx.numpy(), process=False)
    assert mesh.is_watertight and mesh.volume == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.03)
    source = rough()
    again = volume()
    again.load_state_dict(source.state_dict())
    assert torch.equal(again.forward_density(points()), source.forward_density(points()))
    same = type(source).create_from(source, {"grid_size": [12, 10, 8]})
    torch.testing.assert_close(same(points())["features"], source(points())["features"])
    finer = type(source).create_from(source, {"grid_size": [36, 30, 24]})
    assert F.cosine_similarity(finer(points())["features"], source(points())["features"], dim=0).min() > 0.95
    with pytest.raises(EmptyFieldError):
        volume(density_bias=-1.0, isosurface_threshold=9.0, isosurface_resolution=8).isosurface()


def test_a_fit_learns_the_density():
    geometry, x = volume(density_bias=-1.0), points()
    target = (x.norm(dim=-1, keepdim=True) < 0.5).float() * 3
    optimizer = torch.optim.Adam(geometry.parameters(), lr=0.1)
    losses = []
    for _ in range(40):
        loss = F.mse_loss(geometry.forward_density(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0] and geometry.density_scale.item() != 0


@pytest.mark.parametrize(
    "config, message",
    [
        ({"grid_size": [8, 8]}, "3 values"),
        ({"grid_size": [8, 8, 1]}, "three numbers >= 2"),
        ({"grid_size": [4096, 4096, 4096]}, "more than"),
        ({"density_bias": "blob_magic3d"}, "number or blob"),
        ({"normal_type": "numeric"}, "normal_type"),
        ({"finite_difference_normal_eps": -1.0}, "finite_difference_normal_eps"),
        ({"grid_sise": [8, 8, 8]}, "grid_size"),
    ],
)
def test_bad_config(config, message):
    with pytest.raises(UserError, match=message):
        volume(**config)
