"""Normals of what a depth image shows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def camera_directions(
    intrinsics: Tensor,  # [B, 4] focal_x, focal_y, center_x, center_y in pixels
    height: int,
    width: int,
) -> Tensor:
    """[B, H, W, 3] through pixel centres, of length 1 along the view axis; OpenGL axes (y up, -z forward)."""
    x = torch.arange(width, dtype=intrinsics.dtype, device=intrinsics.device) + 0.5
    y = torch.arange(height, dtype=intrinsics.dtype, device=intrinsics.device) + 0.5
    focal_x, focal_y, center_x, center_y = intrinsics[:, :, None, None].unbind(1)  # each [B, 1, 1]
    right = ((x[None, None, :] - center_x) / focal_x).expand(-1, height, -1)
    up = (-(y[None, :, None] - center_y) / focal_y).expand(-1, -1, width)
    return torch.stack([right, up, -torch.ones_like(right)], -1)


def normals_from_depth(
    depth: Tensor,  # [B, H, W, 1] along the view axis
    directions: Tensor,  # [B, H, W, 3] of ``camera_directions``
    c2w: Tensor,  # [B, 4, 4]
) -> Tensor:
    """Unit normals [B, H, W, 3] in the world, towards the camera: cross products of central differences of points."""
    points = F.pad((depth * directions).permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate").permute(0, 2, 3, 1)
    along_x = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
    along_y = points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    local = F.normalize(torch.linalg.cross(along_y, along_x, dim=-1), dim=-1, eps=1e-12)
    return torch.einsum("bij,bhwj->bhwi", c2w[:, :3, :3], local)
