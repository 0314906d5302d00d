"""Gaussians at the edge of what can be drawn, and input that is refused."""

import pytest
import torch

from tests.ops.gaussian_scenes import (
    CPU,
    identity_camera,
    need,
    one_gaussian,
    orbit,
    pinhole,
    random_gaussians,
)
from tests.ops.running import stays_inside_its_arrays
from threestudio.ops.gaussian_rasterization import available_backends, rasterize_gaussians, rasterize_gaussians_batch
from threestudio.ops.gaussian_rasterization.projection import intrinsics_from_fov

ON_CPU = available_backends(CPU)
BACKGROUND = torch.tensor([0.1, 0.2, 0.3])


def draw(gaussians, backend, height=10, width=12, camera=None, **options):
    camera = identity_camera(gaussians[0].dtype) if camera is None else camera
    intrinsics = torch.tensor([10.0, 10.0, width / 2, height / 2], dtype=gaussians[0].dtype)
    return rasterize_gaussians(*gaussians, camera, intrinsics, height, width, backend=backend, **options)


@pytest.mark.parametrize("backend", ON_CPU)
def test_no_gaussians_give_the_background(backend):
    gaussians = [x[:0].requires_grad_() for x in random_gaussians(3, dtype=torch.float32)]
    image = draw(gaussians, backend, background=BACKGROUND)
    assert torch.equal(image.color, BACKGROUND.expand(10, 12, 3)) and (image.opacity == 0).all()
    assert image.means2d.shape == (0, 2) and image.visible.shape == (0,)
    image.color.sum().backward()
    assert gaussians[0].grad.shape == (0, 3)


HIDDEN = {
    "behind": one_gaussian([0.0, 0.0, 2.0], 0.1),
    "at the camera": one_gaussian([0.0, 0.0, 0.0], 0.1),
    "nearer than near": one_gaussian([0.0, 0.0, -0.005], 0.001),
    "beside": one_gaussian([9.0, 0.0, -2.0], 0.1),
    "below": one_gaussian([0.0, -9.0, -2.0], 0.1),
    "transparent": one_gaussian([0.0, 0.0, -2.0], 0.1, opacity=0.0),
    "fainter than an 8-bit step": one_gaussian([0.0, 0.0, -2.0], 0.1, opacity=0.0039),
    "too large for float32": one_gaussian([0.0, 0.0, -2.0], 1e12),
    "far away": one_gaussian([1e30, 0.0, -2.0], 0.1),
}


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_gaussians_change_nothing_and_get_no_gradient(name, backend):
    gaussians = [x.float().requires_grad_() for x in HIDDEN[name]]
    image = draw(gaussians, backend, background=BACKGROUND)
    assert torch.equal(image.color, BACKGROUND.expand(10, 12, 3)) and (image.depth == 0).all()
    assert not image.visible.any() and (image.radii == 0).all()
    (image.color.sum() + image.depth.sum()).backward()
    assert all((x.grad == 0).all() for x in gaussians) and (image.means2d.grad == 0).all()


@pytest.mark.parametrize("backend", ON_CPU)
def test_near_is_a_distance_along_the_view_axis(backend):
    gaussians = [x.float() for x in one_gaussian([0.5, 0.0, -2.0], 0.1)]
    assert draw(gaussians, backend, near=1.99).visible.all()
    assert not draw(gaussians, backend, near=2.01).visible.any()


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_gaussian_without_size_is_a_dot_of_the_least_size(backend):
    gaussians = [x.float().requires_grad_() for x in one_gaussian([0.05, 0.05, -1.0], 0.0, 0.8)]
    image = draw(gaussians, backend)
    # Its mean is the pixel centre (6.5, 4.5), the variance 0.3: exp(-1 / 0.6) one pixel away.
    torch.testing.assert_close(image.opacity[4, 6].detach(), torch.tensor([0.8]))
    torch.testing.assert_close(image.opacity[4, 7].detach(), 0.8 * torch.exp(torch.tensor([-1 / 0.6])))
    image.color.sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in gaussians)


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("scales", [[300.0, 300.0, 300.0], [50.0, 1e-6, 1e-6], [1e-4, 3e3, 1e-5]])
def test_huge_and_needle_like_gaussians_match_float64(scales, backend):
    gaussians = one_gaussian([0.1, -0.1, -2.0], 1.0, 0.8)
    gaussians[1] = torch.tensor([[0.9, 0.1, 0.2, 0.35]], dtype=torch.float64)
    gaussians[2] = torch.tensor([scales], dtype=torch.float64)
    expected = draw(gaussians, "torch")
    narrow = [x.float().requires_grad_() for x in gaussians]
    image = draw(narrow, backend)
    assert expected.opacity.max() > 0.5
    torch.testing.assert_close(image.opacity.detach().double(), expected.opacity, atol=2e-2, rtol=0.0)
    image.color.square().sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in narrow)


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_gaussian_beside_the_camera_does_not_smear_over_the_image(backend):
    """Its J is taken at the guard band. At its own slope of 10 the deviation would be 5 sqrt(1 + 10^2) = 50 pixels, at
    a mean 100 pixels beside the middle: opacity 0.7 exp(-2) = 0.09, of something that is not in view."""
    gaussians = [x.float() for x in one_gaussian([0.2, 0.0, -0.02], 0.01)]
    assert not draw(gaussians, backend).visible.any()
    gaussians[0][0, 0] = 0.021  # just outside of the image, and of the guard band
    image = draw(gaussians, backend)
    assert image.visible.all() and image.radii[0] < 3 * 5 * 1.5


NAMES = ("means", "quaternions", "scales", "opacities", "colors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("index", range(5), ids=NAMES)
def test_what_is_not_finite_is_refused_by_name(index, value):
    gaussians = random_gaussians(5, dtype=torch.float32)
    gaussians[index].view(-1)[2] = value
    with pytest.raises(ValueError, match=f"{NAMES[index]}: not finite"):
        draw(gaussians, "auto")


def test_cameras_and_backgrounds_that_are_not_finite_are_refused_by_name():
    gaussians = random_gaussians(5, dtype=torch.float32)
    with pytest.raises(ValueError, match="c2w: not finite"):
        draw(gaussians, "auto", camera=identity_camera(torch.float32) * float("nan"))
    with pytest.raises(ValueError, match="background: not finite"):
        draw(gaussians, "auto", background=BACKGROUND / 0)
    with pytest.raises(ValueError, match="means2d_offsets: not finite"):
        draw(gaussians, "auto", means2d_offsets=torch.full((5, 2), float("nan")))


def with_changed(index, change):
    gaussians = random_gaussians(5, dtype=torch.float32)
    gaussians[index] = change(gaussians[index])
    return gaussians


@pytest.mark.parametrize(
    "gaussians, message",
    [
        (with_changed(0, lambda x: x[:, :2]), r"means: expected shape \[5, 3\], got \[5, 2\]"),
        (with_changed(1, lambda x: x[1:]), r"quaternions: expected shape \[5, 4\], got \[4, 4\]"),
        (with_changed(1, lambda x: x * 0), "quaternions: .*length 0"),
        (with_changed(2, lambda x: -x), "scales: .*negative"),
        (with_changed(3, lambda x: x[:, None]), r"opacities: expected shape \[5\], got \[5, 1\]"),
        (with_changed(3, lambda x: x + 1), r"opacities: expected values in \[0, 1\]"),
        (with_changed(4, lambda x: x[:4]), r"colors: expected shape \[5, 3\], got \[4, 3\]"),
        (with_changed(4, lambda x: x.double()), "colors: expected torch.float32 on cpu.*torch.float64"),
        ([x.half() for x in random_gaussians(5)], "means: expected float32 or float64, got torch.float16"),
    ],
)
def test_impossible_gaussians_are_refused_by_name(gaussians, message):
    with pytest.raises(ValueError, match=message):
        draw(gaussians, "auto")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"backend": "cuda-magic"}, "backend: expected one of auto, torch, warp, gsplat, got 'cuda-magic'"),
        ({"backend": "gsplat"}, "backend .gsplat. is not available for cpu"),
        ({"near": 0.0}, "near: .*above 0"),
        ({"height": 0}, "height, width"),
        ({"background": torch.zeros(4)}, r"background: expected shape \[3\]"),
        ({"means2d_offsets": torch.zeros(4, 2)}, r"means2d_offsets: expected shape \[5, 2\], got \[4, 2\]"),
        ({"camera": 2 * torch.eye(4)}, "c2w: expected a rotation without scale"),
        ({"camera": torch.eye(4).expand(2, 4, 4)}, "c2w: .*rasterize_gaussians_batch"),
    ],
)
def test_impossible_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        draw(random_gaussians(5, dtype=torch.float32), **{"backend": "auto", **options})


def test_other_impossible_cameras_are_refused_by_name():
    gaussians = random_gaussians(5, dtype=torch.float32)
    with pytest.raises(ValueError, match="intrinsics: expected focal lengths above 0"):
        rasterize_gaussians(*gaussians, torch.eye(4), [10.0, -10.0, 5.0, 5.0], 10, 10)
    with pytest.raises(ValueError, match=r"intrinsics: expected shape \[2, 4\]"):
        rasterize_gaussians_batch(*gaussians, torch.eye(4).expand(2, 4, 4), torch.ones(1, 4), 10, 10)
    with pytest.raises(ValueError, match=r"c2w: expected shape \[B, 4, 4\]"):
        rasterize_gaussians_batch(*gaussians, torch.eye(4), torch.ones(1, 4), 10, 10)


def test_the_kernels_refuse_float64_and_auto_takes_torch_for_it():
    need("warp")
    gaussians = random_gaussians(5)
    with pytest.raises(ValueError, match="all but torch take float32"):
        draw(gaussians, "warp")
    assert draw(gaussians, "auto").color.dtype == torch.float64


def test_half_precision_autocast_does_not_reach_the_pixels():
    gaussians = random_gaussians(20, dtype=torch.float32)
    plain = draw(gaussians, "torch", camera=orbit(1, dtype=torch.float32)[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = draw(gaussians, "torch", camera=orbit(1, dtype=torch.float32)[0])
    assert torch.equal(plain.color, cast.color)


def test_intrinsics_of_a_field_of_view():
    focal = 0.5 * 30 / torch.tan(torch.tensor(0.4))
    torch.testing.assert_close(
        intrinsics_from_fov(0.8, 30, 40), torch.stack([focal, focal, torch.tensor(20.0), torch.tensor(15.0)])
    )
    wide = intrinsics_from_fov(torch.tensor([0.8, 0.8]), 30, 40, fovx=torch.tensor([1.0, 1.2]))
    torch.testing.assert_close(wide[:, 0], 20 / torch.tan(torch.tensor([0.5, 0.6])))
    assert pinhole(2, 30, 40).shape == (2, 4)


def test_kernels_stay_inside_their_arrays():
    need("warp")
    stays_inside_its_arrays("""
from tests.ops.gaussian_scenes import orbit, pinhole, random_gaussians
from threestudio.ops.gaussian_rasterization import rasterize_gaussians_batch
for n, scale, size in ((60, 0.1, (35, 47)), (30, 3.0, (5, 64)), (0, 1.0, (4, 4))):
    gaussians = [x.requires_grad_() for x in random_gaussians(n, scale=scale, channels=5, dtype=torch.float32)]
    cameras = orbit(2, dtype=torch.float32), pinhole(2, *size, torch.float32)
    image = rasterize_gaussians_batch(*gaussians, *cameras, *size, backend="warp")
    (image.color.sum() + image.depth.sum()).backward()
    assert n == 0 or gaussians[0].grad.abs().sum() > 0
""")
