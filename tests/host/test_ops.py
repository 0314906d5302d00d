"""Cameras, rays and small functions against what they must be."""

import math

import pytest
import torch
import torch.nn.functional as F

from threestudio.utils import ops
from threestudio.utils.errors import UserError


def look_at(position: torch.Tensor) -> torch.Tensor:  # [B, 3] -> c2w [B, 4, 4]
    """OpenGL cameras at `position` that look at the origin, z up."""
    backward = F.normalize(position, dim=-1)
    up = torch.tensor([0.0, 0.0, 1.0]).expand_as(position)
    right = F.normalize(torch.cross(up, backward, dim=-1), dim=-1)
    true_up = torch.cross(backward, right, dim=-1)
    c2w = torch.eye(4).repeat(len(position), 1, 1)
    c2w[:, :3, :] = torch.stack([right, true_up, backward, position], dim=-1)
    return c2w


def on_sphere(count: int) -> torch.Tensor:
    azimuth = torch.arange(count) * (2 * math.pi / count)
    return torch.stack([2 * azimuth.cos(), 2 * azimuth.sin(), torch.full_like(azimuth, 0.7)], -1)


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_rays_through_pixels_project_back_to_them(batch):
    """Every ray's points land, through the projection, on the pixel the ray was made for."""
    height, width, fovy = 6, 8, torch.full((batch,), math.radians(50))
    c2w = look_at(on_sphere(batch))
    focal = 0.5 * height / math.tan(float(fovy[0]) / 2)
    directions = ops.get_ray_directions(height, width, focal).expand(batch, -1, -1, -1)
    rays_o, rays_d = ops.get_rays(directions, c2w, keepdim=True)
    assert rays_o.shape == rays_d.shape == (batch, height, width, 3)
    assert torch.allclose(rays_d.norm(dim=-1), torch.ones(batch, height, width))
    projection = ops.get_projection_matrix(fovy, width / height, 0.01, 100.0)
    mvp = ops.get_mvp_matrix(c2w, projection)
    points = F.pad(rays_o + 1.7 * rays_d, (0, 1), value=1.0)
    clip = torch.einsum("bij,bhwj->bhwi", mvp, points)
    ndc = clip[..., :3] / clip[..., 3:]
    x = (torch.arange(width) + 0.5) / width * 2 - 1
    y = (torch.arange(height) + 0.5) / height * 2 - 1  # row 0, the top, is -1: y is down
    assert torch.allclose(ndc[..., 0], x.expand(batch, height, width), atol=1e-5)
    assert torch.allclose(ndc[..., 1], y[:, None].expand(batch, height, width), atol=1e-5)
    assert (ndc[..., 2].abs() < 1).all()


def test_the_middle_ray_meets_the_origin():
    position = on_sphere(3)
    directions = ops.get_ray_directions(1, 1, 1.0).expand(3, -1, -1, -1)
    _, rays_d = ops.get_rays(directions, look_at(position), keepdim=True)
    assert torch.allclose(rays_d[:, 0, 0], -F.normalize(position, dim=-1), atol=1e-6)


def test_depth_of_the_planes():
    projection = ops.get_projection_matrix(torch.tensor([1.0]), 1.0, 0.5, 10.0)[0]
    for z, expected in ((-0.5, -1.0), (-10.0, 1.0)):
        clip = projection @ torch.tensor([0.0, 0.0, z, 1.0])
        assert float(clip[2] / clip[3]) == pytest.approx(expected, abs=1e-5)


def test_rays_of_one_camera_and_of_many():
    c2w = look_at(on_sphere(2))
    directions = ops.get_ray_directions(2, 3, (4.0, 5.0), principal=(1.0, 1.0))
    flat_o, flat_d = ops.get_rays(directions, c2w[0])
    assert flat_o.shape == flat_d.shape == (6, 3)
    both_o, both_d = ops.get_rays(directions, c2w, keepdim=True)
    assert torch.equal(both_d[0].reshape(-1, 3), flat_d)
    per_ray_o, per_ray_d = ops.get_rays(directions.reshape(-1, 3), c2w[:1].expand(6, 4, 4))
    assert torch.allclose(per_ray_d, flat_d) and torch.equal(per_ray_o, flat_o)
    unnormalized = ops.get_rays(directions, c2w[0], normalize=False)[1]
    assert torch.allclose(F.normalize(unnormalized, dim=-1), flat_d)
    with pytest.raises(ValueError, match="no rays from"):
        ops.get_rays(directions, c2w[None])


def test_ray_noise_is_drawn_from_the_global_generator():
    c2w, directions = look_at(on_sphere(1)), ops.get_ray_directions(2, 2, 1.0)[None]
    exact = ops.get_rays(directions, c2w)
    torch.manual_seed(0)
    noisy = ops.get_rays(directions, c2w, noise_scale=0.1)
    torch.manual_seed(0)
    again = ops.get_rays(directions, c2w, noise_scale=0.1)
    assert torch.equal(noisy[0], again[0]) and not torch.equal(noisy[0], exact[0])
    offset = noisy[0] - exact[0]
    assert torch.allclose(offset, offset[:1].expand_as(offset), atol=1e-6)


def test_gaussian_cameras():
    """World to view is OpenCV's; the full transform has clip w = depth, and depth in [0, 1]."""
    c2w = look_at(on_sphere(1))[0]
    fov, near, far = math.radians(60), 0.1, 50.0
    world_view, full, center = ops.get_cam_info_gaussian(c2w, fov, fov, near, far)
    assert torch.allclose(center, c2w[:3, 3])
    origin = torch.tensor([0.0, 0.0, 0.0, 1.0])
    view = origin @ world_view
    distance = float(c2w[:3, 3].norm())
    assert torch.allclose(view, torch.tensor([0.0, 0.0, distance, 1.0]), atol=1e-5)
    above = torch.tensor([0.0, 0.0, 0.5, 1.0]) @ world_view
    assert above[1] < 0  # y is down
    forward = -c2w[:3, 2]
    for depth, expected in ((near, 0.0), (far, 1.0)):
        clip = torch.cat([c2w[:3, 3] + forward * depth, torch.ones(1)]) @ full
        assert float(clip[3]) == pytest.approx(depth, rel=1e-3)
        assert float(clip[2] / clip[3]) == pytest.approx(expected, abs=1e-3)
    edge = c2w[:3, 3] + forward + c2w[:3, 0] * math.tan(fov / 2)
    clip = torch.cat([edge, torch.ones(1)]) @ full
    assert float(clip[0] / clip[3]) == pytest.approx(1.0, abs=1e-5)


def test_chunks_are_the_whole():
    x, y = torch.randn(10, 3), torch.randn(10, 1)

    def f(x, y, scale, *, shift):
        return {"sum": x + y * scale + shift, "both": (x, [y]), "none": None}

    whole = f(x, y, 2.0, shift=y)
    for size in (0, 1, 3, 10, 64):
        out = ops.chunk_batch(f, size, x, y, 2.0, shift=y)
        assert torch.equal(out["sum"], whole["sum"])
        assert torch.equal(out["both"][0], x) and torch.equal(out["both"][1][0], y)
        assert out["none"] is None
    assert ops.chunk_batch(lambda x: x * 2, 4, torch.zeros(0, 3)).shape == (0, 3)


def test_chunks_carry_gradients_or_none():
    x = torch.randn(5, 2, requires_grad=True)
    ops.chunk_batch(lambda x: x**2, 2, x).sum().backward()
    assert torch.allclose(x.grad, 2 * x)

    def with_own_gradient(x):
        with torch.enable_grad():
            return x * torch.ones((), requires_grad=True)

    with torch.no_grad():
        assert not ops.chunk_batch(with_own_gradient, 2, x).requires_grad


ACTIVATIONS = {
    "none": lambda x: x,
    "exp": torch.exp,
    "shifted_exp": lambda x: torch.exp(x - 1),
    "trunc_exp": torch.exp,
    "shifted_trunc_exp": lambda x: torch.exp(x - 1),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "shifted_softplus": lambda x: F.softplus(x - 1),
    "scale_-11_01": lambda x: (x + 1) / 2,
    "softplus": F.softplus,
    "relu": F.relu,
    "ReLU": F.relu,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    x = torch.linspace(-3, 3, 13)
    assert torch.allclose(ops.get_activation(name)(x), ACTIVATIONS[name](x))


def test_srgb():
    linear = torch.tensor([-1.0, 0.0, 0.001, 0.2140, 1.0, 2.0])
    expected = torch.tensor([0.0, 0.0, 0.01292, 0.5, 1.0, 1.0])
    assert torch.allclose(ops.get_activation("lin2srgb")(linear), expected, atol=1e-3)


def test_truncated_exp_has_a_finite_gradient():
    x = torch.tensor([0.0, 80.0], requires_grad=True)
    ops.trunc_exp(x).sum().backward()
    assert torch.allclose(x.grad, torch.tensor([1.0, math.exp(15)]))


def test_an_unknown_activation():
    with pytest.raises(UserError, match="unknown activation 'softpluss'; nearest: softplus"):
        ops.get_activation("softpluss")


def test_scale_tensor():
    x = torch.tensor([[-1.0, 0.0, 1.0]])
    assert torch.allclose(ops.scale_tensor(x, (-1, 1), (0, 1)), torch.tensor([[0.0, 0.5, 1.0]]))
    bbox = torch.tensor([[-1.0, -2.0, -4.0], [1.0, 2.0, 4.0]])
    assert torch.allclose(ops.scale_tensor(bbox, bbox, (0, 1)), torch.tensor([[0.0], [1.0]]).expand(2, 3))
    assert torch.equal(ops.scale_tensor(x, None, None), x)


def test_perpendicular_component():
    torch.manual_seed(0)
    x, y = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    perpendicular = ops.perpendicular_component(x, y)
    assert torch.allclose((perpendicular * y).sum((1, 2, 3)), torch.zeros(3), atol=1e-5)
    rest = x - perpendicular
    scale = (rest * y).sum((1, 2, 3)) / (y * y).sum((1, 2, 3))
    assert torch.allclose(rest, scale[:, None, None, None] * y, atol=1e-5)
    assert torch.equal(ops.perpendicular_component(x, torch.zeros_like(y)), x)


def test_empty_rays_become_one_sample():
    empty = torch.zeros(0)
    indices, start, end = ops.validate_empty_rays(empty.long(), empty, empty)
    assert indices.tolist() == [0] and start.tolist() == end.tolist() == [0.0]
    given = (torch.tensor([3]), torch.tensor([1.0]), torch.tensor([2.0]))
    assert all(a is b for a, b in zip(ops.validate_empty_rays(*given), given))


def test_small_functions():
    x = torch.tensor([[1.0, 2.0, 2.0]])
    assert ops.dot(x, x).tolist() == [[9.0]]
    n = torch.tensor([[0.0, 0.0, 1.0]])
    assert ops.reflect(x, n).tolist() == [[-1.0, -2.0, 2.0]]
    p, t = torch.tensor([0.25, 0.5]), torch.tensor([1.0, 0.0])
    assert torch.allclose(ops.binary_cross_entropy(p, t), F.binary_cross_entropy(p, t))
