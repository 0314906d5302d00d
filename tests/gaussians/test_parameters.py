"""Spherical harmonics and what raw parameters stand for."""

import math

import pytest
import torch
from turboprop.gaussians.parameters import activate, base_colors, effective, from_points, with_normals, with_sh_degree
from turboprop.gaussians.spherical_harmonics import rgb_to_sh, sh_size, sh_to_rgb, view_colors


def test_view_colors():
    means, cameras = torch.tensor([[0.0, 0, 0], [1.0, 0, 0]]), torch.tensor([[0.0, 0, 5], [0.0, 4, 0]])
    sh = torch.zeros(2, 4, 3)
    sh[:, 0] = rgb_to_sh(torch.tensor([0.2, 0.5, 0.7]))
    assert torch.allclose(view_colors(means, sh, cameras, 0), torch.tensor([0.2, 0.5, 0.7]).expand(2, 2, 3))
    sh[0, 2, 0] = 1.0  # grows along +z: seen from above, the direction is -z
    colors = view_colors(means, sh, cameras, 1)
    assert colors[0, 0, 0].item() == pytest.approx(max(0.0, 0.2 - math.sqrt(3 / (4 * math.pi))), abs=1e-6)
    assert colors[1, 0, 0].item() == pytest.approx(0.2, abs=1e-6)
    assert torch.allclose(view_colors(means, sh, cameras, 0)[..., 0], torch.tensor(0.2))
    assert torch.allclose(sh_to_rgb(rgb_to_sh(means)), means)


def test_degrees():
    assert [sh_size(d) for d in range(4)] == [1, 4, 9, 16]
    with pytest.raises(ValueError, match="sh_degree: expected 0 to 3, got 4"):
        sh_size(4)


def points(n: int = 5, degree: int = 0, **kwargs):
    generator = torch.Generator().manual_seed(0)
    p, c = torch.randn(n, 3, generator=generator), torch.rand(n, 3, generator=generator)
    return from_points(p, c, torch.linspace(0.1, 0.5, n), 0.3, degree, **kwargs), p, c


def test_gaussians_at_points_are_what_was_asked_for():
    parameters, p, c = points(degree=2, normals=True)
    gaussians = activate(parameters)
    assert torch.equal(gaussians.means, p) and torch.allclose(base_colors(parameters), c, atol=1e-6)
    assert torch.allclose(gaussians.scales, torch.linspace(0.1, 0.5, 5)[:, None].expand(-1, 3))
    assert torch.allclose(gaussians.opacities, torch.full((5,), 0.3)) and gaussians.sh.shape == (5, 9, 3)
    assert torch.allclose(parameters["normals"].norm(dim=-1), torch.ones(5))


def test_options_that_change_the_meaning_can_be_written_into_the_parameters():
    parameters, _, _ = points()
    parameters["log_scales"][:, 1] += 0.7
    parameters["sh_dc"][0] = 9.0
    options = activate(parameters, isotropic=True, color_clip=2.0)
    plain = activate(effective(parameters, True, 2.0, 0.0))
    assert all(torch.equal(a, b) for a, b in zip(options, plain))
    assert options.sh[0, 0].tolist() == [2.0] * 3
    assert torch.allclose(options.scales.log().mean(-1), parameters["log_scales"].mean(-1))
    assert torch.equal(options.scales[:, 0], options.scales[:, 1])


@pytest.mark.parametrize("isotropic", [False, True])
def test_smoothing_is_a_convolution_with_a_round_gaussian(isotropic):
    """Covariances add up: the standard deviations 0.3 and 0.4 become 0.5."""
    parameters, _, _ = points(1)
    parameters["log_scales"] = torch.tensor([[0.3, 0.3, 0.3]]).log()
    smooth = activate(parameters, isotropic, smoothing=0.4)
    assert torch.allclose(smooth.scales, torch.full((1, 3), 0.5))
    assert torch.equal(smooth.opacities, activate(parameters).opacities)
    baked = activate(effective(parameters, isotropic, float("inf"), 0.4))
    assert torch.allclose(baked.scales, smooth.scales)


def test_degrees_and_normals_come_and_go():
    parameters, _, _ = points(degree=1)
    parameters["sh_rest"] += 1.0
    more = with_sh_degree(parameters, 3)["sh_rest"]
    assert more.shape == (5, 15, 3) and bool((more[:, :3] == 1).all()) and bool((more[:, 3:] == 0).all())
    assert "sh_rest" not in with_sh_degree(parameters, 0)
    assert with_normals(parameters, True)["normals"].shape == (5, 3) and "normals" not in with_normals(
        parameters, False
    )
