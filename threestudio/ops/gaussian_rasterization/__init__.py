"""Differentiable rasterization of 3D Gaussians: ``rasterize_gaussians`` for one camera, ``..._batch`` for several.

Two stages, from space to the image and from there to pixels, each by

- torch: projection.py and compositing.py, the reference, in float32 and float64;
- warp: projection_warp.py, tile_lists.py and compositing_warp.py, one source for CPU and CUDA, float32;
- gsplat: compositing by that library where a user has it, on CUDA, float32; ``auto`` takes it once it has agreed
  (gsplat_backend.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from threestudio.ops.backends import Backends, is_installed
from threestudio.ops.gaussian_rasterization.compositing import composite_gaussians
from threestudio.ops.gaussian_rasterization.gsplat_backend import (
    composite_gaussians_gsplat,
    gsplat_agrees,
    gsplat_is_new_enough,
)
from threestudio.ops.gaussian_rasterization.input_checks import Gaussians, check_input
from threestudio.ops.gaussian_rasterization.projection import project_gaussians

# With gsplat, Warp projects.
_BACKENDS = Backends("Gaussian rasterization", "gsplat", lambda: gsplat_is_new_enough() and is_installed("warp"))
BACKENDS = _BACKENDS.names
available_backends = _BACKENDS.available


class GaussianImage(NamedTuple):
    """What one camera sees; with a leading [B] on everything from ``rasterize_gaussians_batch``."""

    color: Tensor  # [H, W, C], background included
    opacity: Tensor  # [H, W, 1] in [0, 1)
    depth: Tensor  # [H, W, 1] sum of weight times depth along the view axis: divide by opacity for the mean depth
    means2d: Tensor  # [N, 2] pixels; after loss.backward() its .grad is the gradient on the image, for densification
    radii: Tensor  # [N] pixels, three standard deviations of the longer axis, 0 where not visible
    visible: Tensor  # [N] bool


def rasterize_gaussians(
    means: Tensor,  # [N, 3] in the world
    quaternions: Tensor,  # [N, 4] wxyz, of any length but 0
    scales: Tensor,  # [N, 3] standard deviations along the own axes, in units of the world, at least 0
    opacities: Tensor,  # [N] in [0, 1]
    colors: Tensor,  # [N, C] any number of channels
    c2w: Tensor,  # [4, 4] OpenGL: x right, y up, looks along -z
    intrinsics: Tensor | Sequence[float],  # [4] focal_x, focal_y, center_x, center_y in pixels (intrinsics_from_fov)
    height: int,
    width: int,
    background: Tensor | None = None,  # [C] or [H, W, C]; None: black
    near: float = 0.01,  # Gaussians whose mean is nearer are left out
    means2d_offsets: Tensor | None = None,  # [N, 2] pixels, added to the means of what is visible
    backend: str = "auto",
) -> GaussianImage:
    """One camera's image of 3D Gaussians (Kerbl et al. 2023).

    Differentiable in means, quaternions, scales, opacities, colors, background, means2d_offsets, and in c2w and
    intrinsics. ``means2d`` keeps its gradient. No Gaussian at all, or none visible, gives the background. Raises
    ValueError for a wrong shape, a value that is not finite (the message names the tensor), and UserError for a backend
    that is not to be had here.
    """
    if c2w.dim() != 2:
        raise ValueError(
            f"c2w: expected shape [4, 4], got {list(c2w.shape)}; several cameras: rasterize_gaussians_batch"
        )
    intrinsics = torch.as_tensor(intrinsics, dtype=means.dtype, device=means.device)
    gaussians = (means, quaternions, scales, opacities, colors)
    return _rasterize(
        gaussians, c2w[None], intrinsics[None], height, width, background, near, means2d_offsets, backend, True
    )


def rasterize_gaussians_batch(
    means: Tensor,  # [N, 3]
    quaternions: Tensor,  # [N, 4] wxyz
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    colors: Tensor,  # [N, C], or [B, N, C] where they depend on the view
    c2w: Tensor,  # [B, 4, 4]
    intrinsics: Tensor,  # [B, 4]
    height: int,
    width: int,
    background: Tensor | None = None,  # [C], [B, C] or [B, H, W, C]
    near: float = 0.01,
    means2d_offsets: Tensor | None = None,  # [N, 2] or [B, N, 2]
    backend: str = "auto",
    check_values: bool = True,  # false: only shapes are checked, and no value is waited for on a GPU
) -> GaussianImage:
    """``rasterize_gaussians`` for B cameras of one image size: every output has a leading [B]."""
    if c2w.dim() != 3:
        raise ValueError(f"c2w: expected shape [B, 4, 4], got {list(c2w.shape)}")
    gaussians = (means, quaternions, scales, opacities, colors)
    return _rasterize(
        gaussians, c2w, intrinsics, height, width, background, near, means2d_offsets, backend, False, check_values
    )


def _rasterize(
    gaussians: Gaussians,
    c2w: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    background: Tensor | None,
    near: float,
    means2d_offsets: Tensor | None,
    backend: str,
    single: bool,
    check_values: bool = True,
) -> GaussianImage:
    means, quaternions, scales, opacities, colors = gaussians
    check_input(gaussians, c2w, intrinsics, background, means2d_offsets, height, width, near, check_values)
    backend = choose_backend(backend, means)
    intrinsics, c2w = intrinsics.to(means), c2w.to(means)
    project, composite = _functions_of(backend, c2w.requires_grad or intrinsics.requires_grad)
    with torch.autocast(means.device.type, enabled=False):  # half precision is too coarse for pixels
        projected = project(means, quaternions, scales, opacities, c2w, intrinsics, height, width, near)
        means2d = projected.means2d if means2d_offsets is None else projected.means2d + means2d_offsets
        means2d = means2d[0] if single else means2d
        if means2d.requires_grad:
            means2d.retain_grad()
        color, opacity, depth = composite(
            projected, means2d[None] if single else means2d, opacities, colors, height, width
        )
        if background is not None:
            color = color + (1 - opacity) * _background(background, color)
    image = (color, opacity, depth, projected.radii, projected.visible)
    color, opacity, depth, radii, visible = (x[0] for x in image) if single else image
    return GaussianImage(color, opacity, depth, means2d, radii, visible)


def choose_backend(backend: str, means: Tensor) -> str:
    """The backend for Gaussians with these means [N, 3]; a UserError for one that cannot run here."""
    return _BACKENDS.choose(backend, means, agrees=lambda: gsplat_agrees(means.device))


def _functions_of(backend: str, camera_has_gradient: bool) -> tuple[Callable, Callable]:
    """Projection and compositing; the kernels' projection has no gradient in the camera, so torch's takes its place."""
    if backend == "torch":
        return project_gaussians, composite_gaussians
    from threestudio.ops.gaussian_rasterization.projection_warp import project_gaussians_warp

    project = project_gaussians if camera_has_gradient else project_gaussians_warp
    if backend == "gsplat":
        return project, composite_gaussians_gsplat
    from threestudio.ops.gaussian_rasterization.compositing_warp import composite_gaussians_warp

    return project, composite_gaussians_warp


def _background(background: Tensor, color: Tensor) -> Tensor:
    """To a shape that broadcasts to [B, H, W, C]."""
    n_cameras, height, width, channels = color.shape
    shapes = {
        (channels,): (1, 1, 1, channels),
        (n_cameras, channels): (n_cameras, 1, 1, channels),
        (height, width, channels): (1, height, width, channels),
        (n_cameras, height, width, channels): (n_cameras, height, width, channels),
    }
    shape = tuple(background.shape)
    if shape not in shapes:
        expected = " or ".join(str(list(s)) for s in shapes)
        raise ValueError(f"background: expected shape {expected}, got {list(shape)}")
    return background.view(shapes[shape])
