"""Gaussians and cameras that the rasterizer's tests share."""

import math

import pytest
import torch

from tests.ops.running import CPU, skips_without
from threestudio.ops.gaussian_rasterization import available_backends
from threestudio.ops.gaussian_rasterization.projection import intrinsics_from_fov

DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]
FAST = ["warp", "gsplat"]


need = skips_without(available_backends)


def random_gaussians(n=60, channels=3, seed=0, scale=0.1, opacity=(0.05, 0.95), dtype=torch.float64):
    """means, quaternions, scales, opacities, colors around the origin."""
    generator = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    randn = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    low, high = opacity
    opacities = low + (high - low) * rand(n)
    tensors = [0.4 * randn(n, 3), randn(n, 4), scale * (0.2 + rand(n, 3)), opacities, rand(n, channels)]
    return [x.to(dtype) for x in tensors]


def orbit(n_cameras=1, distance=3.0, dtype=torch.float64):
    """OpenGL c2w [B, 4, 4] of cameras around the z axis, a little above the ground, that look at the origin."""
    poses = torch.zeros(n_cameras, 4, 4, dtype=torch.float64)
    for i in range(n_cameras):
        azimuth = 0.3 + 2 * math.pi * i / n_cameras
        position = distance * torch.tensor([math.cos(azimuth), math.sin(azimuth), 0.3], dtype=torch.float64)
        back = position / position.norm()
        right = torch.linalg.cross(torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), back)
        right = right / right.norm()
        poses[i, :3] = torch.stack([right, torch.linalg.cross(back, right), back, position], -1)
        poses[i, 3, 3] = 1.0
    return poses.to(dtype)


def identity_camera(dtype=torch.float64):
    """At the origin, looks along -z."""
    return torch.eye(4, dtype=dtype)


def pinhole(n_cameras, height, width, dtype=torch.float64):
    return intrinsics_from_fov(torch.full((n_cameras,), 0.8, dtype=dtype), height, width)


def one_gaussian(mean, sigma, opacity=0.7, color=(0.2, 0.5, 0.9), dtype=torch.float64):
    """An isotropic one."""
    tensors = [[mean], [[2.0, 0.0, 0.0, 0.0]], [[sigma] * 3], [opacity], [color]]
    return [torch.tensor(x, dtype=dtype) for x in tensors]


def pixel_centers(height, width, dtype=torch.float64):
    """x and y, each [H, W]."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=dtype) + 0.5, torch.arange(width, dtype=dtype) + 0.5, indexing="ij"
    )
    return x, y
