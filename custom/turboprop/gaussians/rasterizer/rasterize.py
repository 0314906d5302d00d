"""Checks Gaussians and cameras, picks a backend, adds the background."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .compositing import composite_gaussians
from .gsplat_backend import composite_gaussians_gsplat, gsplat_agrees, gsplat_is_usable
from .projection import project_gaussians

BACKENDS = ("auto", "torch", "warp", "gsplat")


class GaussianImage(NamedTuple):
    """What one camera sees; with a leading [B] on everything from ``rasterize_gaussians_batch``."""

    color: Tensor  # [H, W, C], background included
    opacity: Tensor  # [H, W, 1] in [0, 1)
    depth: Tensor  # [H, W, 1] sum of weight times depth along the view axis: divide by opacity for the mean depth
    means2d: Tensor  # [N, 2] pixels; after loss.backward() its .grad is the gradient on the image, for densification
    radii: Tensor  # [N] pixels, three standard deviations of the longer axis, 0 where not visible
    visible: Tensor  # [N] bool


def available_backends(device: torch.device) -> tuple[str, ...]:
    """Backends that can run on the device, the first being what "auto" takes for float32."""
    names = []
    if importlib.util.find_spec("warp") is not None and device.type in ("cpu", "cuda"):
        if gsplat_is_usable(device):
            names.append("gsplat")
        names.append("warp")
    return (*names, "torch")


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
    intrinsics. ``means2d`` keeps its gradient. No Gaussian at all, or none visible, gives the background.

    Raises:
        ValueError: a wrong shape, a value that is not finite (the message names the tensor), a backend not to be had.
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


Gaussians = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # means, quaternions, scales, opacities, colors


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
    project, composite = functions_of(backend, c2w.requires_grad or intrinsics.requires_grad)
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
    """A backend's name for "auto"; an error for one that cannot run here."""
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    present = available_backends(means.device)
    if backend == "auto":
        if means.dtype != torch.float32:
            return "torch"
        return present[1] if present[0] == "gsplat" and not gsplat_agrees(means.device) else present[0]
    if backend not in present:
        raise ValueError(f"backend: {backend} cannot run on {means.device.type} here, which has {', '.join(present)}")
    if backend != "torch" and means.dtype != torch.float32:
        raise ValueError(f"backend: {backend} computes in float32, the Gaussians are {means.dtype}; use torch")
    return backend


def functions_of(backend: str, camera_has_gradient: bool) -> tuple[Callable, Callable]:
    """Projection and compositing; the kernels' projection has no gradient in the camera, so torch's takes its place."""
    if backend == "torch":
        return project_gaussians, composite_gaussians
    from .projection_warp import project_gaussians_warp

    project = project_gaussians if camera_has_gradient else project_gaussians_warp
    if backend == "gsplat":
        return project, composite_gaussians_gsplat
    from .compositing_warp import composite_gaussians_warp

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


def check_input(
    gaussians: Gaussians,
    c2w: Tensor,
    intrinsics: Tensor,
    background: Tensor | None,
    means2d_offsets: Tensor | None,
    height: int,
    width: int,
    near: float,
    check_values: bool = True,
) -> None:
    """Shapes first, then values."""
    means, quaternions, scales, opacities, colors = gaussians
    n, n_cameras = means.shape[0], c2w.shape[0]
    _check_shape("means", means, (n, 3))
    _check_shape("quaternions", quaternions, (n, 4))
    _check_shape("scales", scales, (n, 3))
    _check_shape("opacities", opacities, (n,))
    _check_shape("colors", colors, (n_cameras, n, colors.shape[-1]) if colors.dim() == 3 else (n, colors.shape[-1]))
    _check_shape("c2w", c2w, (n_cameras, 4, 4))
    _check_shape("intrinsics", intrinsics, (n_cameras, 4))
    if means2d_offsets is not None:
        _check_shape("means2d_offsets", means2d_offsets, (n_cameras, n, 2) if means2d_offsets.dim() == 3 else (n, 2))
    if means.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"means: expected float32 or float64, got {means.dtype}")
    named = dict(zip(("quaternions", "scales", "opacities", "colors"), gaussians[1:]))
    named.update({"background": background, "means2d_offsets": means2d_offsets})
    for name, tensor in named.items():
        if tensor is not None and (tensor.dtype != means.dtype or tensor.device != means.device):
            raise ValueError(
                f"{name}: expected {means.dtype} on {means.device} as the means, got {tensor.dtype} on {tensor.device}"
            )
    if height < 1 or width < 1:
        raise ValueError(f"height, width: expected at least one pixel, got {height} x {width}")
    if not (math.isfinite(near) and near > 0):
        raise ValueError(f"near: expected a finite distance above 0, got {near}")
    if check_values:
        _check_values({**named, "means": means, "c2w": c2w, "intrinsics": intrinsics})


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")


@torch.no_grad()
def _check_values(named: dict[str, Tensor | None]) -> None:
    """With one transfer from the device for all rules."""
    quaternions, scales, opacities, c2w = (named[name] for name in ("quaternions", "scales", "opacities", "c2w"))
    rotation = c2w[:, :3, :3].double()
    skew = (rotation.transpose(1, 2) @ rotation - torch.eye(3, dtype=torch.float64, device=c2w.device)).abs()
    rules = {
        **{
            f"{name}: not finite (NaN or infinity)": ~torch.isfinite(x).all()
            for name, x in named.items()
            if x is not None
        },
        "quaternions: expected a rotation, one has length 0": (quaternions.abs().amax(-1) == 0).any(),
        "scales: expected at least 0, one is negative": (scales < 0).any(),
        "opacities: expected values in [0, 1]": ((opacities < 0) | (opacities > 1)).any(),
        "c2w: expected a rotation without scale": (skew > 1e-3).any(),
        "intrinsics: expected focal lengths above 0": (named["intrinsics"][:, :2] <= 0).any(),
    }
    broken = torch.stack([value.to(scales.device) for value in rules.values()]).tolist()
    for message, wrong in zip(rules, broken):
        if wrong:
            raise ValueError(f"rasterize_gaussians: {message}")
