"""Differentiable rasterization of 3D Gaussians: ``rasterize_gaussians`` for one camera, ``..._batch`` for several.

projection.py, compositing.py: plain torch, the oracle of all others. projection_warp.py, tile_lists.py,
compositing_warp.py: the same as kernels for CPU and CUDA. gsplat_backend.py: the library gsplat, where installed.
rasterize.py checks the input and picks one.
"""

from .compositing import TRANSMITTANCE_MIN
from .projection import ALPHA_MAX, ALPHA_MIN, DILATION, intrinsics_from_fov
from .rasterize import (
    BACKENDS,
    GaussianImage,
    available_backends,
    rasterize_gaussians,
    rasterize_gaussians_batch,
)

__all__ = [
    "ALPHA_MAX",
    "ALPHA_MIN",
    "BACKENDS",
    "DILATION",
    "TRANSMITTANCE_MIN",
    "GaussianImage",
    "available_backends",
    "intrinsics_from_fov",
    "rasterize_gaussians",
    "rasterize_gaussians_batch",
]
