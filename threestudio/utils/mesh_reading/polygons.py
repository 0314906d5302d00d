"""Polygons to triangles: fans where the polygon is convex, ears cut off where it is not."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from threestudio.utils.errors import UserError


class Triangles(NamedTuple):
    corners: np.ndarray  # [T, 3] indices into the corners of all polygons, which follow one another
    polygon: np.ndarray  # [T] the polygon that each triangle is of


def check_corners(path: str, corners: np.ndarray, n_vertices: int) -> None:
    """Raises UserError where a face of the file names a vertex that it does not have."""
    if len(corners) and not (0 <= corners.min() and corners.max() < n_vertices):
        raise UserError(f"{path} is broken: a face names a vertex that is not there")


def strip_triangles(corners: np.ndarray) -> np.ndarray:  # [n] -> [n - 2, 3]
    """Triangles of a strip; every other one runs the other way."""
    first, second, third = corners[:-2], corners[1:-1], corners[2:]
    odd = np.arange(len(first)) % 2 == 1
    return np.stack([first, np.where(odd, third, second), np.where(odd, second, third)], 1)


def triangulate(counts: np.ndarray, positions: np.ndarray) -> Triangles:
    """Triangles of polygons in space, with the polygons' winding; those of fewer than three corners have none.

    Args:
        counts: [P] corners of each polygon; positions: [sum of counts, 3] where the corners are.
    """
    counts = np.asarray(counts, np.int64)
    starts = np.cumsum(counts) - counts
    n_triangles = (counts - 2).clip(0)
    polygon = np.repeat(np.arange(len(counts)), n_triangles)
    first = np.cumsum(n_triangles) - n_triangles
    step = np.arange(len(polygon)) - first[polygon]
    start = starts[polygon]
    corners = np.stack([start, start + step + 1, start + step + 2], 1)
    for index in _concave(corners, polygon, counts, positions):
        rows = slice(first[index], first[index] + n_triangles[index])
        own = positions[starts[index] : starts[index] + counts[index]]
        corners[rows] = starts[index] + _ears(own)
    return Triangles(corners, polygon)


def _concave(corners: np.ndarray, polygon: np.ndarray, counts: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Indices of the polygons whose fan has a triangle that faces against the others."""
    many = counts[polygon] > 3
    corners, polygon = corners[many], polygon[many]
    if len(corners) == 0:
        return polygon
    a, b, c = (positions[corners[:, i]] for i in range(3))
    normals = np.cross(b - a, c - a)
    total = np.zeros((len(counts), 3))  # twice the polygon's area along its normal (Newell's method)
    np.add.at(total, polygon, normals)
    along = (normals * total[polygon]).sum(1)
    return np.unique(polygon[along < -1e-9 * (total[polygon] ** 2).sum(1)])


def _ears(positions: np.ndarray) -> np.ndarray:
    """Triangles [n - 2, 3] of one simple polygon [n, 3] by ear clipping (Meisters 1975); a fan where it is none."""
    n = len(positions)
    fan = np.stack([np.zeros(n - 2, np.int64), np.arange(1, n - 1), np.arange(2, n)], 1)
    normal = np.cross(positions[fan[:, 1]] - positions[0], positions[fan[:, 2]] - positions[0]).sum(0)
    flat = np.delete(positions, np.abs(normal).argmax(), axis=1)
    # Leaving out y turns x, z around: the sign of the area says which way the flat polygon runs.
    flat = (flat - flat.min(0)) / max(float(np.ptp(flat, axis=0).max()), 1e-30)
    x, y = flat.T
    if (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() < 0:
        flat = flat * [-1.0, 1.0]
    left, triangles = list(range(n)), []
    while len(left) > 3:
        # A corner on a straight line is cut off, as a triangle without area, where nothing else can be.
        at = next((i for least in (1e-12, 0.0) for i in range(len(left)) if _is_ear(flat, left, i, least)), None)
        if at is None:
            return fan
        triangles.append((left[at - 1], left[at], left[(at + 1) % len(left)]))
        del left[at]
    return np.array([*triangles, tuple(left)], np.int64)


def _is_ear(flat: np.ndarray, left: list[int], at: int, least: float) -> bool:  # [n, 2]
    """Whether the corner left[at] turns left, by at least this area, and its triangle holds no other corner."""
    ear = [left[at - 1], left[at], left[(at + 1) % len(left)]]
    corners, others = flat[ear], flat[[k for k in left if k not in ear]]
    edges = np.roll(corners, -1, axis=0) - corners
    if edges[0, 0] * edges[1, 1] - edges[0, 1] * edges[1, 0] < least:
        return False
    offset = others[:, None] - corners  # [M, 3, 2]
    side = edges[:, 0] * offset[..., 1] - edges[:, 1] * offset[..., 0]
    # A corner that lies on one of the triangle's own (a bridge to a hole) is no obstacle.
    apart = (np.abs(offset).max(-1) > 0).all(1)
    return not bool(((side >= 0).all(1) & apart).any())
