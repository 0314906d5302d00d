"""Exact signed distances of simple solids, negative inside.

Every function takes points and returns one distance a point, in world units:
points [..., 3] -> [...]. The formulas are elementary geometry: the distance to a
solid of revolution is a planar distance in (radius, height), the distance to a
rounded solid is that of its core less the rounding radius.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SignedDistance = Callable[[Tensor], Tensor]  # [..., 3] -> [...]
Vector = Sequence[float]


def sphere(center: Vector, radius: float) -> SignedDistance:
    def distance(points: Tensor) -> Tensor:  # [..., 3] -> [...]
        return (points - points.new_tensor(center)).norm(dim=-1) - radius

    return distance


def box(center: Vector, half_size: Vector, rounding: float = 0.0) -> SignedDistance:
    """An axis-aligned box of outer half size `half_size`, its edges rounded by `rounding`."""

    def distance(points: Tensor) -> Tensor:  # [..., 3] -> [...]
        core = points.new_tensor(half_size) - rounding
        q = (points - points.new_tensor(center)).abs() - core
        return q.clamp_min(0).norm(dim=-1) + q.amax(dim=-1).clamp_max(0) - rounding

    return distance


def capsule(start: Vector, end: Vector, radius: float) -> SignedDistance:
    """All points within `radius` of the segment from `start` to `end`."""

    def distance(points: Tensor) -> Tensor:  # [..., 3] -> [...]
        a = points.new_tensor(start)
        segment = points.new_tensor(end) - a
        along = ((points - a) @ segment / segment.dot(segment)).clamp(0, 1)
        return (points - a - along[..., None] * segment).norm(dim=-1) - radius

    return distance


def _along_axis(points: Tensor, start: Vector, end: Vector) -> tuple[Tensor, Tensor, float]:
    """Distance from the axis [...], height above `start` [...], and the axis' length."""
    a = points.new_tensor(start)
    axis = points.new_tensor(end) - a
    length = float(axis.norm())
    direction = axis / length
    height = (points - a) @ direction
    radial = (points - a - height[..., None] * direction).norm(dim=-1)
    return radial, height, length


def cylinder(start: Vector, end: Vector, radius: float, rounding: float = 0.0) -> SignedDistance:
    """A solid cylinder around the segment from `start` to `end`."""

    def distance(points: Tensor) -> Tensor:  # [..., 3] -> [...]
        radial, height, length = _along_axis(points, start, end)
        q = torch.stack([radial - (radius - rounding), (height - length / 2).abs() - (length / 2 - rounding)], -1)
        return q.clamp_min(0).norm(dim=-1) + q.amax(dim=-1).clamp_max(0) - rounding

    return distance


def cone(start: Vector, end: Vector, radius_start: float, radius_end: float) -> SignedDistance:
    """A solid frustum whose radius goes from `radius_start` to `radius_end`."""

    def distance(points: Tensor) -> Tensor:  # [..., 3] -> [...]
        radial, height, length = _along_axis(points, start, end)
        # The profile is a trapezoid: distance to its slanted side, and to its two caps.
        slant = radius_end - radius_start
        along = ((radial - radius_start) * slant + height * length) / (slant**2 + length**2)
        along = along.clamp(0, 1)
        side = torch.hypot(radial - radius_start - along * slant, height - along * length)
        bottom = torch.hypot((radial - radius_start).clamp_min(0), height)
        top = torch.hypot((radial - radius_end).clamp_min(0), height - length)
        outline = torch.minimum(side, torch.minimum(bottom, top))
        edge = radius_start + slant * height / length
        inside = (height > 0) & (height < length) & (radial < edge)
        return torch.where(inside, -outline, outline)

    return distance


def torus(center: Vector, axis: int, radius: float, thickness: float) -> SignedDistance:
    """A ring of radius `radius` around coordinate axis `axis`, its tube of radius `thickness`."""

    def distance(points: Tensor) -> Tensor:  # [..., 3] -> [...]
        local = points - points.new_tensor(center)
        plane = [i for i in range(3) if i != axis]
        ring = local[..., plane].norm(dim=-1) - radius
        return torch.hypot(ring, local[..., axis]) - thickness

    return distance


def convex_prism(corners: Sequence[Vector], axis: int, center: float, half_length: float) -> SignedDistance:
    """A convex polygon, counter-clockwise in the two coordinates other than `axis`, extruded along `axis`."""

    def distance(points: Tensor) -> Tensor:  # [..., 3] -> [...]
        plane = [i for i in range(3) if i != axis]
        p = points[..., plane]
        polygon = points.new_tensor(corners)  # [K, 2]
        nearest = torch.full_like(p[..., 0], math.inf)
        outside = torch.full_like(nearest, -math.inf)
        for a, b in zip(polygon, polygon.roll(-1, 0)):
            edge = b - a
            along = ((p - a) @ edge / edge.dot(edge)).clamp(0, 1)
            nearest = torch.minimum(nearest, (p - a - along[..., None] * edge).norm(dim=-1))
            normal = torch.stack([edge[1], -edge[0]]) / edge.norm()
            outside = torch.maximum(outside, (p - a) @ normal)
        flat = torch.where(outside > 0, nearest, -nearest)
        q = torch.stack([flat, (points[..., axis] - center).abs() - half_length], -1)
        return q.clamp_min(0).norm(dim=-1) + q.amax(dim=-1).clamp_max(0)

    return distance


def intersect(first: SignedDistance, second: SignedDistance) -> SignedDistance:
    """Points in both solids. A lower bound of the distance, exact on the surface."""
    return lambda points: torch.maximum(first(points), second(points))


def subtract(solid: SignedDistance, hole: SignedDistance) -> SignedDistance:
    """Points of `solid` outside `hole`. A lower bound of the distance, exact on the surface."""
    return lambda points: torch.maximum(solid(points), -hole(points))
