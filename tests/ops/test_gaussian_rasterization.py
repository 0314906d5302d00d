"""The rasterizer's backends against each other, against arithmetic by hand and against finite differences."""

import math

import pytest
import torch

from tests.ops.gaussian_scenes import (
    CPU,
    DEVICES,
    FAST,
    identity_camera,
    need,
    one_gaussian,
    orbit,
    pinhole,
    pixel_centers,
    random_gaussians,
)
from threestudio.ops.gaussian_rasterization import available_backends, rasterize_gaussians, rasterize_gaussians_batch
from threestudio.ops.gaussian_rasterization.compositing import TRANSMITTANCE_MIN, composite_gaussians
from threestudio.ops.gaussian_rasterization.projection import (
    ALPHA_MAX,
    ALPHA_MIN,
    DILATION,
    project_gaussians,
    rotation_matrices,
)

DTYPES = {"torch": torch.float64, "warp": torch.float32, "gsplat": torch.float32}
ON_CPU = available_backends(CPU)


def close(backend):
    return {"atol": 1e-12, "rtol": 1e-9} if backend == "torch" else {"atol": 2e-6, "rtol": 1e-4}


def by_hand(gaussians, c2w, intrinsics, height, width):
    """Color, opacity and depth of every pixel by the paper's formulas, one Gaussian after another, in Python."""
    means, quaternions, scales, opacities, colors = gaussians
    w2c = torch.linalg.inv(c2w)
    w2c = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)) @ w2c
    focal_x, focal_y, center_x, center_y = intrinsics.tolist()
    splats = []
    for n in range(len(means)):
        x, y, z = (w2c[:3, :3] @ means[n] + w2c[:3, 3]).tolist()
        r = rotation_matrices(quaternions[n : n + 1])[0]
        covariance = r @ torch.diag(scales[n] ** 2) @ r.T
        jacobian = torch.tensor(
            [[focal_x / z, 0, -focal_x * x / z**2], [0, focal_y / z, -focal_y * y / z**2]], dtype=torch.float64
        )
        jw = jacobian @ w2c[:3, :3]
        on_image = jw @ covariance @ jw.T + DILATION * torch.eye(2, dtype=torch.float64)
        mean = (focal_x * x / z + center_x, focal_y * y / z + center_y)
        splats.append((z, mean, torch.linalg.inv(on_image), float(opacities[n]), colors[n]))
    splats.sort(key=lambda splat: splat[0])
    color, rest = (
        torch.zeros(height, width, colors.shape[-1], dtype=torch.float64),
        torch.zeros(height, width, 2).double(),
    )
    for i in range(height):
        for j in range(width):
            transmittance = 1.0
            for z, mean, inverse, opacity, c in splats:
                d = torch.tensor([j + 0.5 - mean[0], i + 0.5 - mean[1]], dtype=torch.float64)
                alpha = opacity * math.exp(-0.5 * float(d @ inverse @ d))
                if alpha < ALPHA_MIN:
                    continue
                alpha = min(alpha, ALPHA_MAX)
                if transmittance * (1 - alpha) < TRANSMITTANCE_MIN:
                    break
                color[i, j] += alpha * transmittance * c
                rest[i, j, 0] += alpha * transmittance
                rest[i, j, 1] += alpha * transmittance * z
                transmittance *= 1 - alpha
    return color, rest[..., :1], rest[..., 1:]


def test_the_reference_is_the_papers_formulas():
    gaussians = random_gaussians(25, scale=0.3, opacity=(0.3, 1.0))
    c2w, intrinsics = orbit(1)[0], torch.tensor([11.0, 12.5, 5.2, 3.9], dtype=torch.float64)
    image = rasterize_gaussians(*gaussians, c2w, intrinsics, 8, 10, backend="torch")
    expected = by_hand(gaussians, c2w, intrinsics, 8, 10)
    assert expected[1].max() > 0.97 and expected[1].min() < 0.6
    for got, want in zip(image[:3], expected):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("backend", ON_CPU)
def test_one_gaussian_has_the_analytic_image_and_gradient(backend):
    dtype = DTYPES[backend]
    height, width, z, sigma, opacity = 15, 21, 2.0, 0.11, 0.7
    gaussians = [x.requires_grad_() for x in one_gaussian([0.3, -0.2, -z], sigma, opacity, dtype=dtype)]
    intrinsics = torch.tensor([20.0, 20.0, 10.0, 7.0], dtype=dtype)
    image = rasterize_gaussians(*gaussians, identity_camera(dtype), intrinsics, height, width, backend=backend)
    # +x of the world is to the right, +y up. J = focal / z [1 0 -x / z; 0 1 -y / z], so with slopes s = (x, y) / z:
    # covariance = (focal sigma / z)^2 (1 + s s^T) + 0.3.
    mean = torch.tensor([10.0 + 20.0 * 0.3 / z, 7.0 + 20.0 * 0.2 / z], dtype=torch.float64)
    slope = torch.tensor([0.3 / z, 0.2 / z], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    covariance = (20.0 * sigma / z) ** 2 * (eye + torch.outer(slope, slope)) + 0.3 * eye
    x, y = pixel_centers(height, width)
    d = torch.stack([x, y], -1) - mean
    falloff = torch.exp(-0.5 * (d @ torch.linalg.inv(covariance) * d).sum(-1))
    falloff = torch.where(opacity * falloff >= ALPHA_MIN, falloff, 0.0)
    alpha = (opacity * falloff).to(dtype)[..., None]
    torch.testing.assert_close(image.means2d[0].detach(), mean.to(dtype))
    torch.testing.assert_close(image.opacity.detach(), alpha, **close(backend))
    torch.testing.assert_close(image.depth.detach(), z * alpha, **close(backend))
    torch.testing.assert_close(image.color.detach(), alpha * gaussians[4].detach(), **close(backend))
    radius = 3 * torch.linalg.eigvalsh(covariance).max().sqrt()
    torch.testing.assert_close(image.radii[0], radius.to(dtype))
    (to_opacity,) = torch.autograd.grad(image.opacity.sum(), gaussians[3])
    torch.testing.assert_close(to_opacity[0].double(), falloff.sum(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("backend", ON_CPU)
def test_two_gaussians_from_both_sides(backend):
    """The nearer one hides the other by its alpha; order of storage does not matter."""
    dtype = DTYPES[backend]
    near = one_gaussian([0.0, 0.0, 0.5], 2.0, 0.6, (1.0, 0.0, 0.0), dtype)
    far = one_gaussian([0.0, 0.0, -0.5], 2.0, 0.8, (0.0, 1.0, 0.0), dtype)
    gaussians = [torch.cat(pair) for pair in zip(far, near)]
    front = identity_camera(dtype)
    front[2, 3] = 5.0
    back = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=dtype))
    back[2, 3] = -5.0
    intrinsics = torch.tensor([9.0, 9.0, 0.5, 0.5], dtype=dtype).expand(2, 4)
    image = rasterize_gaussians_batch(*gaussians, torch.stack([front, back]), intrinsics, 1, 1, backend=backend)
    expected = torch.tensor([[0.6, 0.4 * 0.8, 0.0], [0.2 * 0.6, 0.8, 0.0]], dtype=dtype)
    torch.testing.assert_close(image.color[:, 0, 0], expected, **close(backend))
    torch.testing.assert_close(image.opacity.flatten(), torch.tensor([0.92, 0.92], dtype=dtype), **close(backend))
    depth = torch.tensor([0.6 * 4.5 + 0.32 * 5.5, 0.8 * 4.5 + 0.12 * 5.5], dtype=dtype)
    torch.testing.assert_close(image.depth.flatten(), depth, **close(backend))


def test_gradients_of_the_reference_match_finite_differences():
    gaussians = [x.requires_grad_() for x in random_gaussians(7, channels=2, scale=0.25, opacity=(0.2, 0.9))]
    height, width = 5, 6
    extras = [
        torch.rand(2, dtype=torch.float64),
        torch.zeros(7, 2, dtype=torch.float64),
        torch.zeros(6, dtype=torch.float64),
    ]
    extras = [x.requires_grad_() for x in extras]
    intrinsics = torch.tensor([7.0, 7.5, 3.1, 2.4], dtype=torch.float64, requires_grad=True)

    def images(means, quaternions, scales, opacities, colors, intrinsics, background, offsets, motion):
        zero = motion.new_zeros(())
        a, b, c, x, y, z = motion
        skew = torch.stack([zero, -c, b, x, c, zero, -a, y, -b, a, zero, z, zero, zero, zero, zero]).view(4, 4)
        c2w = orbit(1)[0] @ torch.linalg.matrix_exp(skew)
        gaussians = (means, quaternions, scales, opacities, colors)
        return rasterize_gaussians(
            *gaussians, c2w, intrinsics, height, width, background, means2d_offsets=offsets, backend="torch"
        )[:3]

    assert torch.autograd.gradcheck(images, (*gaussians, intrinsics, *extras), eps=1e-7, atol=1e-5)


def everything(backend, device, gaussians, n_cameras, height, width, distance=3.0, camera_gradient=False):
    """Images, and gradients of a random weighting of them in all inputs and in means2d, as float64 on the CPU."""
    dtype = DTYPES[backend]
    inputs = [x.clone().to(device, dtype).requires_grad_() for x in gaussians]
    cameras = [orbit(n_cameras, distance).to(device, dtype), pinhole(n_cameras, height, width).to(device, dtype)]
    cameras = [x.requires_grad_(camera_gradient) for x in cameras]
    background = torch.linspace(0, 1, inputs[4].shape[-1], dtype=dtype, device=device).requires_grad_()
    image = rasterize_gaussians_batch(*inputs, *cameras, height, width, background, backend=backend)
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(x.shape, generator=generator).to(x) for x in image[:3]]
    sum((x * w).sum() for x, w in zip(image[:3], weights)).backward()
    leaves = [*inputs, background, *(cameras if camera_gradient else [])]
    images = [x.detach().double().cpu() for x in image[:3]]
    gradients = [x.grad.double().cpu() for x in (*leaves, image.means2d)]
    return images, gradients, image


SCENES = {
    "sparse": ({"n": 40, "scale": 0.1}, 3, 37, 45),
    "features": ({"n": 150, "scale": 0.05, "channels": 9, "seed": 1}, 2, 33, 20),
    "one channel": ({"n": 80, "scale": 0.08, "channels": 1, "seed": 2}, 2, 16, 64),
    "opaque": ({"n": 250, "scale": 0.25, "opacity": (0.9, 1.0), "seed": 3}, 2, 40, 36),
    "cameras in between": ({"n": 150, "scale": 0.1, "seed": 4}, 3, 24, 30, 0.3),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("scene", SCENES)
def test_values_and_gradients_match_the_float64_reference(scene, backend, device):
    """A pixel may fall on the other side of a threshold in float32: then it differs by at most about 1e-2."""
    need(backend, device)
    arguments, *size = SCENES[scene]
    gaussians = random_gaussians(**arguments)
    expected, expected_gradients, reference = everything("torch", CPU, gaussians, *size)
    images, gradients, image = everything(backend, device, gaussians, *size)
    if scene == "opaque":
        assert (reference.opacity > 0.999).double().mean() > 0.2  # pixels that ended early
    for got, want in zip(images, expected):
        difference = (got - want).abs()
        assert difference.max() < 2e-2 * want.abs().max()
        assert (difference > 2e-5 * want.abs().max()).double().mean() < 2e-3
    for got, want in zip(gradients, expected_gradients):
        assert want.norm() > 0
        assert (got - want).norm() < 2e-3 * want.norm()
    assert torch.equal(image.visible.cpu(), reference.visible)
    torch.testing.assert_close(image.radii.double().cpu(), reference.radii, atol=1e-3, rtol=1e-4)


def test_the_kernels_give_the_cameras_gradient_too():
    need("warp")
    gaussians = random_gaussians(60, scale=0.12)
    _, expected, _ = everything("torch", CPU, gaussians, 2, 24, 24, camera_gradient=True)
    _, gradients, _ = everything("warp", CPU, gaussians, 2, 24, 24, camera_gradient=True)
    for got, want in zip(gradients, expected):
        assert want.norm() > 0 and (got - want).norm() < 1e-3 * want.norm()


@pytest.mark.parametrize(
    "name, index, step", [("means", 0, 2e-3), ("quaternions", 1, 5e-2), ("scales", 2, 2e-2), ("opacities", 3, 2e-2)]
)
def test_gradients_of_the_kernels_match_finite_differences(name, index, step):
    """On Gaussians that cover the whole image, so that no pixel crosses the least alpha in between."""
    need("warp")
    gaussians = random_gaussians(6, scale=1.5, opacity=(0.3, 0.6), dtype=torch.float32)
    c2w, intrinsics = orbit(1, distance=6.0, dtype=torch.float32)[0], pinhole(1, 12, 12, torch.float32)[0]
    generator = torch.Generator().manual_seed(3)
    weights, direction = (
        torch.rand(12, 12, 5, generator=generator),
        torch.randn(gaussians[index].shape, generator=generator),
    )

    def loss(x):
        moved = [x if i == index else g for i, g in enumerate(gaussians)]
        image = rasterize_gaussians(*moved, c2w, intrinsics, 12, 12, backend="warp")
        return (torch.cat(image[:3], -1).double() * weights).sum()

    x = gaussians[index].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    slope = (loss(gaussians[index] + step * direction) - loss(gaussians[index] - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum().double(), slope, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_batch_is_its_cameras_one_by_one(backend):
    dtype = DTYPES[backend]
    gaussians = random_gaussians(40, dtype=dtype)
    gaussians[4] = torch.stack([gaussians[4], 1 - gaussians[4], 0.5 * gaussians[4]])  # colours by view
    c2w, intrinsics = orbit(3, dtype=dtype), pinhole(3, 20, 24, dtype)
    background = torch.rand(3, 20, 24, 3, dtype=dtype)
    batch = rasterize_gaussians_batch(*gaussians, c2w, intrinsics, 20, 24, background, backend=backend)
    assert [x.shape[0] for x in batch] == [3] * 6
    for i in range(3):
        view = (*gaussians[:4], gaussians[4][i])
        single = rasterize_gaussians(*view, c2w[i], intrinsics[i].tolist(), 20, 24, background[i], backend=backend)
        for got, want in zip(single, batch):
            torch.testing.assert_close(got, want[i], **(close(backend) if got.is_floating_point() else {}))


@pytest.mark.parametrize("backend", ON_CPU)
def test_neither_storage_order_nor_tiles_change_the_image(backend, monkeypatch):
    gaussians = random_gaussians(200, scale=0.08, dtype=DTYPES[backend])
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    cameras = (orbit(2, dtype=DTYPES[backend]), pinhole(2, 40, 50, DTYPES[backend]))

    def run(gaussians):
        inputs = [x.clone().requires_grad_() for x in gaussians]
        image = rasterize_gaussians_batch(*inputs, *cameras, 40, 50, backend=backend)
        image.color.square().sum().backward()
        return image.color.detach(), [x.grad for x in inputs]

    color, gradients = run(gaussians)
    shuffled_color, shuffled_gradients = run([x[order] for x in gaussians])
    assert torch.equal(color, shuffled_color)
    for got, want in zip(shuffled_gradients, gradients):
        torch.testing.assert_close(got, want[order], atol=1e-5, rtol=1e-3)
    if backend == "warp":
        from threestudio.ops.gaussian_rasterization import tile_lists

        monkeypatch.setattr(tile_lists, "CPU_TILE", 8)
        tiled_color, tiled_gradients = run(gaussians)
    else:
        projected = project_gaussians(*gaussians[:4], *cameras, 40, 50, 0.01)
        tiled_color = composite_gaussians(projected, projected.means2d, *gaussians[3:], 40, 50, tile=7)[0]
        tiled_gradients = gradients
    torch.testing.assert_close(tiled_color, color, **close(backend))
    for got, want in zip(tiled_gradients, gradients):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-3)


def test_cells_of_one_pixel_as_on_cuda_give_the_same(monkeypatch):
    """The kernels' CUDA configuration, 16 x 16 tiles and a thread per pixel, run on the CPU."""
    need("warp")
    from threestudio.ops.gaussian_rasterization import compositing_warp, tile_lists

    gaussians = random_gaussians(150, scale=0.15, opacity=(0.3, 1.0))
    images, gradients, _ = everything("warp", CPU, gaussians, 2, 35, 50)
    listed = tile_lists.list_tiles
    monkeypatch.setattr(tile_lists, "CPU_TILE", tile_lists.CUDA_TILE)
    monkeypatch.setattr(compositing_warp, "list_tiles", lambda *arguments: listed(*arguments)._replace(cell=1))
    per_pixel_images, per_pixel_gradients, _ = everything("warp", CPU, gaussians, 2, 35, 50)
    for got, want in zip(per_pixel_images, images):
        assert torch.equal(got, want)
    for got, want in zip(per_pixel_gradients, gradients):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("backend", ON_CPU)
def test_runs_repeat_bit_for_bit(backend):
    gaussians = random_gaussians(300, scale=0.1, opacity=(0.3, 1.0))
    first = everything(backend, CPU, gaussians, 2, 40, 40)
    second = everything(backend, CPU, gaussians, 2, 40, 40)
    for a, b in zip((*first[0], *first[1]), (*second[0], *second[1])):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ON_CPU)
def test_means2d_has_the_gradient_of_moving_a_gaussian_on_the_image(backend):
    dtype = DTYPES[backend]
    gaussians = [x.requires_grad_() for x in random_gaussians(30, dtype=dtype)]
    cameras = (orbit(2, dtype=dtype), pinhole(2, 20, 20, dtype))
    offsets = torch.zeros(2, 30, 2, dtype=dtype, requires_grad=True)
    image = rasterize_gaussians_batch(*gaussians, *cameras, 20, 20, means2d_offsets=offsets, backend=backend)
    image.color.square().sum().backward()
    assert image.means2d.grad.norm() > 0 and torch.equal(image.means2d.grad, offsets.grad)
    single = rasterize_gaussians(*gaussians, cameras[0][0], cameras[1][0], 20, 20, backend=backend)
    single.color.square().sum().backward()
    assert single.means2d.shape == (30, 2)
    torch.testing.assert_close(single.means2d.grad, image.means2d.grad[0], **close(backend))
    with torch.no_grad():
        moved = rasterize_gaussians_batch(
            *gaussians, *cameras, 20, 20, means2d_offsets=offsets.new_ones(30, 2), backend=backend
        )
    torch.testing.assert_close(moved.means2d, image.means2d.detach() + 1)
    assert not torch.equal(moved.color, image.color)


@pytest.mark.parametrize("backend", ON_CPU)
def test_backgrounds_show_through_what_is_not_covered(backend):
    dtype = DTYPES[backend]
    gaussians = random_gaussians(20, dtype=dtype)
    cameras = (orbit(2, dtype=dtype), pinhole(2, 9, 11, dtype))
    bare = rasterize_gaussians_batch(*gaussians, *cameras, 9, 11, backend=backend)
    for shape in ((3,), (2, 3), (9, 11, 3), (2, 9, 11, 3)):
        background = torch.rand(shape, dtype=dtype)
        expected = background[:, None, None] if shape == (2, 3) else background
        image = rasterize_gaussians_batch(*gaussians, *cameras, 9, 11, background, backend=backend)
        torch.testing.assert_close(image.color, bare.color + (1 - bare.opacity) * expected)


@pytest.mark.parametrize("backend", ON_CPU)
def test_what_lies_behind_a_pixels_end_has_no_gradient(backend):
    """At 0.9 each, the transmittance is 1e-3 after three; the fourth brings it to the threshold, the fifth below."""
    dtype = DTYPES[backend]
    stack = [one_gaussian([0.0, 0.0, -2.0 - 0.1 * i], 5.0, 0.9, (1.0, 0.5, 0.0), dtype) for i in range(7)]
    gaussians = [torch.cat(parts).requires_grad_() for parts in zip(*stack)]
    intrinsics = torch.tensor([4.0, 4.0, 0.5, 0.5], dtype=dtype)
    image = rasterize_gaussians(*gaussians, identity_camera(dtype), intrinsics, 1, 1, backend=backend)
    image.color.sum().backward()
    remaining = 1 - image.opacity.item()
    assert TRANSMITTANCE_MIN * 0.99 < remaining < 1.1e-3
    assert (
        (gaussians[4].grad[:3] > 0).all() and (gaussians[4].grad[4:] == 0).all() and (gaussians[3].grad[4:] == 0).all()
    )


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_cut_alpha_has_no_gradient_in_shape_but_in_color(backend):
    dtype = DTYPES[backend]
    gaussians = [x.requires_grad_() for x in one_gaussian([0.0, 0.0, -2.0], 5.0, 1.0, dtype=dtype)]
    intrinsics = torch.tensor([4.0, 4.0, 0.5, 0.5], dtype=dtype)
    image = rasterize_gaussians(*gaussians, identity_camera(dtype), intrinsics, 1, 1, backend=backend)
    image.color.sum().backward()
    torch.testing.assert_close(image.opacity.flatten(), torch.tensor([ALPHA_MAX], dtype=dtype))
    assert gaussians[3].grad.item() == 0 and (gaussians[2].grad == 0).all()
    torch.testing.assert_close(gaussians[4].grad, torch.full((1, 3), ALPHA_MAX, dtype=dtype))
