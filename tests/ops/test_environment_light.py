"""Light from all around, against integrals that are known in closed form or summed by brute force."""

import math

import pytest
import torch
import torch.nn.functional as F

from threestudio.ops import environment_light as environment
from threestudio.utils.ops import get_ray_directions, get_rays


def sphere(count: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)), dim=-1)


def panorama_of(radiance, height: int = 128, width: int = 256) -> torch.Tensor:
    return radiance(environment.panorama_directions(height, width)).expand(height, width, 3).contiguous()


def test_a_panorama_covers_the_sphere_once_with_the_axes_where_they_are_said_to_be():
    directions, angles = environment.panorama_directions(64, 128), environment.solid_angles(64, 128)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(64, 128))
    assert angles.sum().item() == pytest.approx(4 * math.pi, rel=1e-5)
    assert ((directions * angles[..., None]).sum((0, 1)).abs() < 1e-4).all()
    assert directions[0, :, 2].min() > 0.999 and directions[-1, :, 2].max() < -0.999
    middle = directions[31:33, 63:65].mean((0, 1))
    torch.testing.assert_close(F.normalize(middle, dim=0), torch.tensor([1.0, 0.0, 0.0]), atol=1e-5, rtol=0)
    assert directions[32, 96, 1] < -0.99  # a quarter to the right is -y


def test_a_camera_in_the_middle_sees_the_panorama_as_it_is_and_not_mirrored():
    """What stands to the right in a panorama, as writing does, is to the right in a picture from where it was taken."""
    panorama = torch.zeros(64, 128, 3)
    panorama[16:24, 64:72] = 1.0  # above and right of the middle
    levels = environment.resized_panorama(panorama, *environment.BLURRED)[None]
    # a camera at the origin that looks along +x with z up: its right is -y
    c2w = torch.tensor([[0.0, 0, -1, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    _, rays = get_rays(get_ray_directions(33, 33, focal=16.5), c2w, keepdim=True)
    picture = environment.light_towards(levels, F.normalize(rays.reshape(-1, 3), dim=-1)).view(33, 33, 3)[..., 0]
    rows, columns = (picture > 0.5).nonzero().float().mean(0)
    assert rows < 14 and columns > 18


def test_diffuse_light_of_the_first_two_harmonics():
    """Clamped cosines keep all of a constant and two thirds of a linear light (Ramamoorthi and Hanrahan 2001)."""
    axis = F.normalize(torch.tensor([0.3, -0.5, 0.8]), dim=0)
    panorama = panorama_of(lambda d: 2.0 + (d @ axis)[..., None])
    normal = sphere(200)
    found = environment.light_towards(environment.diffused_light(panorama)[None], normal)
    expected = 2.0 + 2.0 / 3.0 * (normal @ axis)
    torch.testing.assert_close(found, expected[:, None].expand(-1, 3), atol=3e-3, rtol=0)


def test_a_mirror_shows_the_light_and_a_rough_one_its_mean():
    def radiance(d: torch.Tensor) -> torch.Tensor:
        return 1.0 + 0.5 * torch.stack([d[..., 0], d[..., 1] * d[..., 2], d[..., 2] ** 2], -1)

    levels = environment.reflected_light(panorama_of(radiance))
    towards = sphere(300)
    sharp = environment.light_towards(levels, towards, torch.zeros(300))
    torch.testing.assert_close(sharp, radiance(towards), atol=0.02, rtol=0)
    constant = environment.reflected_light(torch.full((32, 64, 3), 0.7))
    torch.testing.assert_close(constant, torch.full_like(constant, 0.7))
    # the rougher, the less is left of what varies
    spread = [environment.light_towards(levels, towards, torch.full((300,), r))[:, 0].std() for r in (0.0, 0.4, 0.7, 1)]
    assert all(a > b for a, b in zip(spread, spread[1:]))


def test_blurred_light_is_the_weighted_mean_by_directions_drawn_from_the_distribution():
    """Halfway vectors drawn from GGX, light by n . l: the estimate of Karis 2013, with v = n."""
    axis = F.normalize(torch.tensor([1.0, 0.2, 0.5]), dim=0)

    def radiance(d: torch.Tensor) -> torch.Tensor:
        return torch.exp(4.0 * ((d @ axis) - 1.0))[..., None]

    levels = environment.reflected_light(panorama_of(radiance))
    for index in (3, 5, 7):
        alpha = (index / 7) ** 2
        first, second = torch.rand(2, 400_000, generator=torch.Generator().manual_seed(index))
        cosine = ((1 - first) / (1 + (alpha**2 - 1) * first)).sqrt()
        sine, turn = (1 - cosine**2).sqrt(), 2 * math.pi * second
        halfway = torch.stack([sine * turn.cos(), sine * turn.sin(), cosine], -1)
        light = 2 * cosine[:, None] * halfway - torch.tensor([0.0, 0.0, 1.0])
        weight = light[:, 2].clamp(min=0.0)
        frame = torch.linalg.qr(torch.cat([axis[:, None], torch.eye(3)[:, :2]], 1))[0]
        normal = frame[:, 0] * torch.sign(frame[:, 0] @ axis) * 0.6 + frame[:, 1] * 0.8  # aslant to the lobe
        basis = torch.linalg.svd(normal[None])[2]
        rotated = light[:, :1] * basis[1] + light[:, 1:2] * basis[2] + light[:, 2:] * normal
        expected = (radiance(rotated)[:, 0] * weight).sum() / weight.sum()
        found = environment.light_towards(levels, normal[None], torch.tensor([index / 7]))[0, 0]
        assert found.item() == pytest.approx(expected.item(), rel=0.03)


def test_the_reflectance_of_a_smooth_surface_is_fresnels_and_of_a_rough_one_loses_light():
    table = environment.reflectance_table()
    assert table.shape == (64, 64, 2) and (table >= 0).all() and (table.sum(-1) <= 1.0 + 1e-3).all()
    cosine = torch.linspace(0.1, 1.0, 20)
    scale, bias = environment.reflectance(table, cosine, torch.full((20,), 1 / 128))
    torch.testing.assert_close(scale + bias, torch.ones(20), atol=0.01, rtol=0)
    torch.testing.assert_close(bias, (1 - cosine) ** 5, atol=0.02, rtol=0)
    rough = sum(environment.reflectance(table, cosine, torch.ones(20)))
    assert (rough < 0.9).all()


def test_the_table_is_the_integral_over_all_directions_of_light():
    """By quadrature over the hemisphere, in place of drawn directions."""
    directions, angles = environment.panorama_directions(400, 800), environment.solid_angles(400, 800)
    upper = directions[..., 2] > 0
    light, angle = directions[upper].double(), angles[upper].double()
    table = environment.reflectance_table()
    for roughness, cosine in ((0.5, 0.7), (0.8, 0.3), (0.35, 0.9)):
        row, column = int(roughness * 64), int(cosine * 64)
        alpha, cosine = ((row + 0.5) / 64) ** 2, (column + 0.5) / 64
        view = torch.tensor([math.sqrt(1 - cosine**2), 0.0, cosine], dtype=torch.float64)
        halfway = F.normalize(light + view, dim=-1)
        distribution = alpha**2 / (math.pi * (halfway[:, 2] ** 2 * (alpha**2 - 1) + 1) ** 2)

        def unshadowed(c, alpha=alpha):
            return 2 * c / (c + (alpha**2 + (1 - alpha**2) * c**2) ** 0.5)

        shared = distribution * unshadowed(light[:, 2]) * unshadowed(cosine) / (4 * cosine) * angle
        grazing = (1 - halfway @ view) ** 5
        expected = torch.stack([(shared * (1 - grazing)).sum(), (shared * grazing).sum()])
        torch.testing.assert_close(table[row, column].double(), expected, atol=4e-3, rtol=0)


def test_gradients_are_finite_at_the_poles_and_right_elsewhere():
    levels = environment.reflected_light(environment.studio_panorama())
    poles = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [1e-9, 0.0, 1.0]], requires_grad=True)
    environment.light_towards(levels, poles, torch.full((3,), 0.3)).sum().backward()
    assert poles.grad.isfinite().all()

    roughness = torch.tensor([0.31], dtype=torch.float64, requires_grad=True)
    towards = F.normalize(torch.tensor([[0.41, -0.62, 0.35]], dtype=torch.float64), dim=-1).requires_grad_(True)

    def looked_up(direction: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return environment.light_towards(levels.double(), direction, level)

    assert torch.autograd.gradcheck(looked_up, (towards, roughness), eps=1e-5, atol=1e-3)


def test_azimuth_has_no_seam():
    levels = environment.diffused_light(environment.studio_panorama())[None]
    behind = torch.tensor([[-1.0, 1e-6, 0.2], [-1.0, -1e-6, 0.2]])
    first, second = environment.light_towards(levels, F.normalize(behind, dim=-1))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


def test_the_studio_has_the_brightness_that_it_says():
    diffused = environment.diffused_light(environment.studio_panorama())[None]
    assert environment.light_towards(diffused, torch.tensor([[0.0, 0.0, 1.0]])).mean().item() == pytest.approx(
        0.5, rel=0.02
    )
