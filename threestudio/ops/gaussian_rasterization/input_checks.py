"""What is refused before Gaussians are rasterized: wrong shapes first, then values that make no image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Gaussians = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # means, quaternions, scales, opacities, colors


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
    optional = {"background": background, "means2d_offsets": means2d_offsets}
    named.update({name: tensor for name, tensor in optional.items() if tensor is not None})
    for name, tensor in named.items():
        if tensor.dtype != means.dtype or tensor.device != means.device:
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
def _check_values(named: dict[str, Tensor]) -> None:
    """With one transfer from the device for all rules."""
    quaternions, scales, opacities, c2w = (named[name] for name in ("quaternions", "scales", "opacities", "c2w"))
    rotation = c2w[:, :3, :3].double()
    skew = (rotation.transpose(1, 2) @ rotation - torch.eye(3, dtype=torch.float64, device=c2w.device)).abs()
    rules = {
        **{f"{name}: not finite (NaN or infinity)": ~torch.isfinite(x).all() for name, x in named.items()},
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
