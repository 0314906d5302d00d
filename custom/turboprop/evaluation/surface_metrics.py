"""Chamfer distance between a generated mesh and the exact surface of the world's object."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch

from ..world.primitives import SignedDistance
from ..world.render import BOUNDING_RADIUS

POINTS = 16_000  # on each surface; two samplings of one surface then differ by about 0.006 world units


@dataclass(frozen=True)
class Chamfer:
    """Mean of the two mean nearest distances between two surfaces."""

    distance: float  # world units; infinite if the mesh is empty
    share: float  # of the diagonal of the exact object's bounding box


def surface_points(signed_distance: SignedDistance, count: int, seed: int = 0) -> np.ndarray:
    """`count` points spread evenly over the zero level of a signed distance (or a lower bound of it): [count, 3].

    Points drawn evenly in a thin shell outside the surface are pulled onto it by Newton's
    steps. Cells of a grid that are farther from the surface than their half diagonal are
    left out first.
    """
    generator = torch.Generator().manual_seed(seed)
    cells, shell = 40, 0.02
    side = 2 * BOUNDING_RADIUS / cells
    axis = -BOUNDING_RADIUS + side * (torch.arange(cells) + 0.5)
    centers = torch.cartesian_prod(axis, axis, axis)
    near = centers[signed_distance(centers).abs() < side * math.sqrt(3) / 2 + shell]
    if len(near) == 0:
        raise ValueError(f"the solid has no surface within {BOUNDING_RADIUS} of the origin")
    found, enough = [], 0
    while enough < count:
        index = torch.randint(len(near), (4 * count,), generator=generator)
        points = near[index] + side * (torch.rand(4 * count, 3, generator=generator) - 0.5)
        distance = signed_distance(points)
        points = points[(distance > 0) & (distance < shell)][:count]
        points = _pulled_onto_surface(signed_distance, points)
        found.append(points)
        enough += len(points)
    return torch.cat(found)[:count].numpy()


def _pulled_onto_surface(signed_distance: SignedDistance, points: torch.Tensor) -> torch.Tensor:
    """Four Newton steps along the gradient; points that do not arrive within 0.002 are dropped: [N, 3] -> [M, 3]."""
    for _ in range(4):
        with torch.enable_grad():
            points = points.detach().requires_grad_(True)
            distance = signed_distance(points)
            (gradient,) = torch.autograd.grad(distance.sum(), points)
        square = gradient.square().sum(-1, keepdim=True).clamp_min(1e-6)
        points = (points - distance[:, None] * gradient / square).detach()
    return points[signed_distance(points).abs() < 2e-3]


@functools.lru_cache(maxsize=64)
def exact_surface_points(signed_distance: SignedDistance) -> np.ndarray:
    """`surface_points` of a kind's signed distance [POINTS, 3], kept for the next prompt of the kind."""
    return surface_points(signed_distance, POINTS)


def point_chamfer(ours: np.ndarray, exact: np.ndarray) -> Chamfer:
    """Chamfer distance of two point sets [N, 3], [M, 3]; infinite if `ours` is empty or not finite."""
    from scipy.spatial import cKDTree

    if len(ours) == 0 or not np.isfinite(ours).all():
        return Chamfer(math.inf, math.inf)
    there = cKDTree(exact).query(ours)[0].mean()
    back = cKDTree(ours).query(exact)[0].mean()
    distance = float(0.5 * (there + back))
    return Chamfer(distance, distance / float(np.linalg.norm(np.ptp(exact, axis=0))))


def mesh_chamfer(mesh, signed_distance: SignedDistance, seed: int = 0) -> Chamfer:
    """Chamfer distance of a trimesh.Trimesh in world axes and units; an empty mesh or None is infinitely far."""
    import trimesh

    if mesh is None or len(mesh.faces) == 0 or not mesh.area > 0:
        return Chamfer(math.inf, math.inf)
    ours, _ = trimesh.sample.sample_surface(mesh, POINTS, seed=seed)
    return point_chamfer(np.asarray(ours), exact_surface_points(signed_distance))
