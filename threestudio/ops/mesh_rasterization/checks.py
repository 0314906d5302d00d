"""What is refused before a mesh is rasterized: images, meshes and cameras of which there can be no picture."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from threestudio.utils.errors import UserError

BYTES_PER_PIXEL = 128  # fragments, their gradients and one image of three channels, about


def check_image(batch: int, height: int, width: int, device: torch.device) -> None:
    """Refuses an image that has no pixel, or more than this machine's memory can hold."""
    if height < 1 or width < 1:
        raise UserError(f"mesh rasterization: expected an image of at least 1 x 1 pixels, got {height} x {width}")
    needed, there = batch * height * width * BYTES_PER_PIXEL, _memory(device)
    if needed > there:
        raise UserError(
            f"mesh rasterization: {batch} image(s) of {height} x {width} pixels need about {needed / 2**30:.0f} GiB, "
            f"{device.type} has {there / 2**30:.0f}: lower the resolution or the batch size"
        )


def _memory(device: torch.device) -> float:
    """Bytes of memory of the device, infinite where that is not known."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not every system tells
        return float("inf")


def check_mesh(v_pos: Tensor, t_pos_idx: Tensor) -> None:
    """Refuses a mesh without faces, with NaN or infinite vertices, or with faces of vertices that it has not."""
    if v_pos.ndim != 2 or v_pos.shape[1] != 3 or t_pos_idx.ndim != 2 or t_pos_idx.shape[1] != 3:
        raise ValueError(
            f"mesh rasterization: expected v_pos [V, 3] and t_pos_idx [F, 3], "
            f"got {list(v_pos.shape)} and {list(t_pos_idx.shape)}"
        )
    if t_pos_idx.shape[0] == 0 or v_pos.shape[0] == 0:
        raise UserError(
            f"mesh rasterization: the mesh is empty ({v_pos.shape[0]} vertices, {t_pos_idx.shape[0]} faces)"
        )
    low, high = t_pos_idx.aminmax()
    finite, low, high = torch.stack([v_pos.detach().isfinite().all().to(low), low, high]).tolist()  # one wait for a GPU
    if not finite:
        n_bad = int((~v_pos.detach().isfinite().all(-1)).sum())
        raise UserError(f"mesh rasterization: {n_bad} of {v_pos.shape[0]} vertices are NaN or infinite")
    if low < 0 or high >= v_pos.shape[0]:
        raise UserError(f"mesh rasterization: faces name vertices {low} to {high}, the mesh has {v_pos.shape[0]}")


def invert_camera(mvp: Tensor) -> Tensor:
    """Clip space to world [B, 4, 4], float64. mvp: [B, 4, 4]."""
    if mvp.ndim != 3 or tuple(mvp.shape[1:]) != (4, 4):
        raise ValueError(f"mesh rasterization: mvp: expected [B, 4, 4], got {list(mvp.shape)}")
    mvp = mvp.double()
    inverse, _ = torch.linalg.inv_ex(mvp)
    error = (mvp @ inverse - torch.eye(4, dtype=mvp.dtype, device=mvp.device)).abs().amax((1, 2))
    bad = [view for view, size in enumerate(error.tolist()) if not size < 1e-6]
    if bad:
        raise UserError(f"mesh rasterization: the camera of view {bad[0]} is degenerate: its mvp matrix has no inverse")
    return inverse
