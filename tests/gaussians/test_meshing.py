"""Gaussians as a field, and the closed meshes of its levels."""

import math

import numpy as np
import pytest
import torch
import trimesh
from turboprop.gaussians.density_field import expanded_ranges, sample_field
from turboprop.gaussians.meshing import EmptyDensity, fill_cavities, gaussian_surface
from turboprop.gaussians.parameters import Gaussians

from threestudio.ops.gaussian_rasterization.projection import rotation_matrices


def gaussians_of(means, scales, opacities, quaternions=None) -> Gaussians:
    means = torch.as_tensor(means)
    n = len(means)
    if quaternions is None:
        quaternions = torch.tensor([[1.0, 0, 0, 0]]).expand(n, -1)
    scales = torch.as_tensor(scales).expand(n, 3) if torch.as_tensor(scales).dim() < 2 else torch.as_tensor(scales)
    return Gaussians(means, scales, quaternions, torch.as_tensor(opacities).expand(n), torch.zeros(n, 1, 3))


def random_gaussians(n: int) -> Gaussians:
    generator = torch.Generator().manual_seed(0)
    return gaussians_of(
        torch.randn(n, 3, generator=generator) * 0.4,
        torch.rand(n, 3, generator=generator) * 0.2 + 0.02,
        torch.rand(n, generator=generator),
        torch.randn(n, 4, generator=generator),
    )


def dense_sum(points, gaussians, colors):
    """Every Gaussian at every point, by the inverse of its covariance."""
    rotation = rotation_matrices(gaussians.quaternions)
    covariance = rotation @ torch.diag_embed(gaussians.scales**2) @ rotation.transpose(1, 2)
    d = points[:, None] - gaussians.means
    distance = torch.einsum("pni,nij,pnj->pn", d, torch.linalg.inv(covariance), d)
    weights = torch.where(distance <= 9, gaussians.opacities * torch.exp(-0.5 * distance), 0.0)
    density = weights.sum(1)
    return density, weights @ colors / density[:, None]


def test_the_field_is_the_sum_of_all_gaussians(monkeypatch):
    gaussians, colors = random_gaussians(60), torch.rand(60, 3, generator=torch.Generator().manual_seed(1))
    points = torch.rand(800, 3, generator=torch.Generator().manual_seed(2)) * 3 - 1.5
    density, color = dense_sum(points.double(), Gaussians(*(x.double() for x in gaussians)), colors.double())
    whole = sample_field(points, gaussians, colors)
    assert torch.allclose(whole.density.double(), density, atol=1e-5)
    dense = density > 0
    assert bool(dense.any()) and not bool(dense.all())
    assert torch.allclose(whole.color[dense].double(), color[dense], atol=1e-4)
    nearest = (points[~dense][:, None] - gaussians.means).norm(dim=-1).argmin(1)
    assert torch.equal(whole.color[~dense], colors[nearest])
    monkeypatch.setattr("turboprop.gaussians.density_field.PAIRS_AT_ONCE", 50)
    in_parts = sample_field(points, gaussians, colors)
    assert torch.allclose(in_parts.density, whole.density, atol=1e-6)


def test_ranges_one_after_another():
    numbers, owner = expanded_ranges(torch.tensor([3, 7, 0]), torch.tensor([2, 0, 3]))
    assert numbers.tolist() == [3, 4, 0, 1, 2] and owner.tolist() == [0, 0, 2, 2, 2]
    assert sample_field(torch.zeros(0, 3), random_gaussians(3), torch.zeros(3, 3)).color.shape == (0, 3)


def as_trimesh(v_pos, t_pos_idx) -> trimesh.Trimesh:
    return trimesh.Trimesh(v_pos.numpy(), t_pos_idx.numpy(), process=True)


def test_the_surface_of_one_gaussian_is_an_ellipsoid():
    """exp(-q / 2) = 1/2 at 1.177 standard deviations."""
    scales = torch.tensor([0.3, 0.2, 0.1])
    gaussians = gaussians_of([[0.1, 0.2, 0.3]], scales, [1.0])
    mesh = as_trimesh(*gaussian_surface(gaussians, torch.zeros(1, 3), 64, 0.5))
    assert mesh.is_watertight and mesh.is_winding_consistent
    half = math.sqrt(2 * math.log(2)) * scales.numpy()
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * half.prod(), rel=0.03)
    assert np.abs(mesh.bounds - [[0.1, 0.2, 0.3] - half, [0.1, 0.2, 0.3] + half]).max() < 0.02
    radius = np.linalg.norm((mesh.vertices - [0.1, 0.2, 0.3]) / half, axis=1)
    assert np.abs(radius - 1).max() < 0.05


def shell() -> Gaussians:
    directions = torch.nn.functional.normalize(torch.randn(1500, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    return gaussians_of(directions * 0.8, 0.06, 0.9)


def test_a_shell_becomes_a_solid():
    gaussians = shell()
    hollow = as_trimesh(*gaussian_surface(gaussians, torch.zeros(1500, 3), 64, 0.5, fill=False))
    solid = as_trimesh(*gaussian_surface(gaussians, torch.zeros(1500, 3), 64, 0.5))
    assert hollow.is_watertight and solid.is_watertight
    assert len(hollow.split(only_watertight=False)) == 2 and len(solid.split(only_watertight=False)) == 1
    assert solid.volume > 4 / 3 * math.pi * 0.8**3 and hollow.volume < 0.7 * solid.volume


def test_random_gaussians_have_closed_surfaces():
    for resolution, threshold in ((20, 0.3), (41, 0.5), (41, 1.5)):
        gaussians = random_gaussians(60)
        mesh = as_trimesh(*gaussian_surface(gaussians, torch.zeros(60, 3), resolution, threshold))
        assert mesh.is_watertight and mesh.volume > 0


def test_no_surface_is_said():
    """Of one that is too faint it shows without a grid, of two that are far apart on it alone."""
    with pytest.raises(EmptyDensity, match="density is at most 0.1, the sum of their opacities, the surface's is 0.5"):
        gaussian_surface(gaussians_of([[0.0, 0, 0]], 0.1, [0.1]), torch.zeros(1, 3), 16, 0.5)
    with pytest.raises(EmptyDensity, match="density is at most 0.[0-3].* on a grid of 16 points, the surface's is 0.5"):
        gaussian_surface(gaussians_of([[-1.0, 0, 0], [1, 0, 0]], 0.1, [0.3, 0.3]), torch.zeros(2, 3), 16, 0.5)


def test_cavities_are_filled_and_bays_are_not():
    density = np.zeros((7, 7, 7))
    density[1:6, 1:6, 1:6] = 1.0
    density[3, 3, 3] = 0.0
    filled = fill_cavities(density, 0.5)
    assert filled[3, 3, 3] > 0.5 and filled[0, 0, 0] == 0
    density[3, 3, 3:] = 0.0
    assert fill_cavities(density, 0.5)[3, 3, 3] == 0
