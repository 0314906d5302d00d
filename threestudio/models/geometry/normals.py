"""Gradients of scalar fields over space, from which geometries make normals."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NORMAL_TYPES = ("finite_difference", "finite_difference_laplacian", "pred", "analytic", None)


def finite_difference_gradient(
    field: Callable[[Tensor], Tensor], points: Tensor, value: Tensor, eps: float, central: bool, radius: float
) -> Tensor:
    """Gradient [..., 3] of a field by forward or central differences of step ``eps``.

    Args:
        field: points [..., 3] -> values [..., 1]; points: [..., 3]; value: the field there [..., 1].
        radius: points that are asked for are moved into the cube of this half side; the differences know it.
    """
    steps = eps * torch.eye(3, device=points.device, dtype=points.dtype)
    ahead_at = (points[..., None, :] + steps).clamp(-radius, radius)
    ahead = field(ahead_at)[..., 0]
    if central:
        behind_at = (points[..., None, :] - steps).clamp(-radius, radius)
        return (ahead - field(behind_at)[..., 0]) / (2 * eps)
    return (ahead - value) / eps


def analytic_gradient(value: Tensor, points: Tensor, create_graph: bool) -> Tensor:
    """d value / d points [..., 3] for value [..., 1] that was computed from points [..., 3] with gradients on.

    create_graph: whether losses on the gradient can be differentiated, too.
    """
    return torch.autograd.grad(value.sum(), points, create_graph=create_graph, retain_graph=True)[0]
