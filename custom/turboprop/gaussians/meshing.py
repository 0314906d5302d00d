"""Closed, coloured meshes around Gaussians."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from threestudio.models.isosurface import MARGIN

from .density_field import gaussian_bounds, sample_field
from .parameters import Gaussians

BORDER = 1  # empty grid points around the box, which close the surface


class EmptyDensity(ValueError):
    """Gaussians whose density is nowhere as high as the surface's."""


def density_grid(gaussians: Gaussians, colors: Tensor, resolution: int) -> tuple[np.ndarray, Tensor, float]:
    """Densities [X, Y, Z] on a grid of cubic cells around the Gaussians, its first point [3], and its spacing.

    `resolution` counts the points along the longest side.
    """
    low, high = gaussian_bounds(gaussians)
    spacing = float((high - low).amax()) / (resolution - 1 - 2 * BORDER)
    origin = low - BORDER * spacing
    counts = (((high - low) / spacing).ceil().long() + 1 + 2 * BORDER).tolist()
    axes = [origin[i] + spacing * torch.arange(counts[i], device=low.device) for i in range(3)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    density = sample_field(points, gaussians, colors).density.reshape(counts)
    return density.double().cpu().numpy(), origin, spacing


def fill_cavities(density: np.ndarray, threshold: float) -> np.ndarray:
    """Empty regions that are closed in on all sides become as dense as they can be: a shell becomes a solid."""
    from scipy.ndimage import binary_fill_holes

    solid = density > threshold
    cavity = binary_fill_holes(solid) & ~solid
    return np.where(cavity, max(2 * threshold, density.max()), density)


def gaussian_surface(
    gaussians: Gaussians,
    colors: Tensor,  # [N, 3]
    resolution: int,
    threshold: float,
    fill: bool = True,  # closed cavities inside are filled
) -> tuple[Tensor, Tensor]:
    """Vertices [V, 3] in world units and outward triangles [F, 3] where the density is `threshold`; closed.

    Marching cubes (Lewiner et al. 2003). Raises EmptyDensity with the highest density where there is no surface.
    """
    from scipy.ndimage import maximum_filter
    from skimage.measure import marching_cubes

    most = float(gaussians.opacities.sum())  # where all are at one place; a grid of large Gaussians takes minutes
    if not most > threshold:
        raise EmptyDensity(
            f"no surface: the Gaussians' density is at most {most:.4g}, the sum of their opacities, "
            f"the surface's is {threshold:g}"
        )
    density, origin, spacing = density_grid(gaussians, colors, resolution)
    if not density.max() > threshold:
        raise EmptyDensity(
            f"no surface: the Gaussians' density is at most {density.max():.4g} on a grid of {resolution} points, "
            f"the surface's is {threshold:g}"
        )
    if fill:
        density = fill_cavities(density, threshold)
    level = density - threshold
    # Every level has at least this share of a neighbouring one: no two surface vertices coincide.
    least = MARGIN * maximum_filter(np.abs(level), 3)
    level = np.where(level > 0, np.maximum(level, least), np.minimum(level, -least))
    outside = np.ones_like(level, bool)
    outside[1:-1, 1:-1, 1:-1] = False
    level = np.where(outside, -np.maximum(np.abs(level), least), level)
    vertices, faces, _, _ = marching_cubes(level, 0.0, gradient_direction="ascent")
    v_pos = torch.from_numpy(vertices.astype(np.float32)).to(origin) * spacing + origin
    return v_pos, torch.from_numpy(faces.astype(np.int64)).to(origin.device)
