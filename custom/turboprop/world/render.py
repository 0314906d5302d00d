"""Renders of the world's exact objects by sphere tracing (Hart 1996)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .cameras import pixel_rays
from .objects import ACCENT, COLORS, DETAIL, DETAIL_COLOR, MAIN, Kind

BOUNDING_RADIUS = 0.95  # every object lies inside this ball around the origin
ROLES = (MAIN, ACCENT, DETAIL)

# The light is fixed to the world and has no highlights, so that an object's shaded
# colour is a property of the point, the same from every side: a field of plain
# colours can equal it.
LIGHT_DIRECTION = (0.42, 0.30, 0.86)
AMBIENT, DIFFUSE = 0.74, 0.26


@dataclass
class SurfaceView:
    """What a ray sees, by pixel [B, H, W, ...]; zero outside the mask."""

    mask: Tensor  # [B, H, W] bool
    depth: Tensor  # [B, H, W] distance along the ray, world units
    normal: Tensor  # [B, H, W, 3] unit, world axes
    role: Tensor  # [B, H, W] int64: MAIN, ACCENT or DETAIL


def surface_normal(kind: Kind, points: Tensor) -> Tensor:  # [N, 3] -> [N, 3]
    """Unit outward normals: the gradient of the signed distance, by central differences."""
    step = 1e-3
    offsets = step * torch.eye(3, dtype=points.dtype, device=points.device)
    gradient = torch.stack([kind.signed_distance(points + o) - kind.signed_distance(points - o) for o in offsets], -1)
    return F.normalize(gradient, dim=-1)


def trace(kind: Kind, origins: Tensor, directions: Tensor, steps: int = 96, tolerance: float = 1e-3) -> Tensor:
    """Distance along each ray to the surface, infinite where it misses: [N, 3] x 2 -> [N].

    Only rays still under way are evaluated; they start and end at the bounding ball.
    """
    closest = -(origins * directions).sum(-1)
    reach2 = BOUNDING_RADIUS**2 - (origins.square().sum(-1) - closest.square())
    half = reach2.clamp_min(0).sqrt()
    distance = torch.full_like(closest, torch.inf)
    active = torch.nonzero((reach2 > 0) & (closest + half > 0)).squeeze(1)
    t, far = (closest - half).clamp_min(0)[active], (closest + half)[active]
    for _ in range(steps):
        if len(active) == 0:
            break
        clearance = kind.signed_distance(origins[active] + t[:, None] * directions[active])
        hit = clearance < tolerance
        distance[active[hit]] = t[hit]
        t = t + clearance
        going = ~hit & (t < far)
        active, t, far = active[going], t[going], far[going]
    return distance


def surface_view(kind: Kind, c2w: Tensor, fovy: Tensor, height: int, width: int) -> SurfaceView:
    """What cameras see of a kind's surface: c2w [B, 4, 4], fovy [B] in radians."""
    origins, directions = (x.reshape(-1, 3) for x in pixel_rays(c2w, fovy, height, width))
    distance = trace(kind, origins, directions)
    hit = torch.isfinite(distance)
    points = origins[hit] + distance[hit, None] * directions[hit]
    normal = torch.zeros_like(origins)
    normal[hit] = surface_normal(kind, points)
    role = torch.zeros_like(hit, dtype=torch.int64)
    role[hit] = kind.roles(points)
    shape = (len(c2w), height, width)
    return SurfaceView(
        mask=hit.reshape(shape),
        depth=torch.where(hit, distance, 0.0).reshape(shape),
        normal=normal.reshape(*shape, 3),
        role=role.reshape(shape),
    )


def shading(normal: Tensor) -> Tensor:  # [..., 3] -> [...]
    """Brightness of a matt surface under the world's fixed light, in [0.48, 1]."""
    light = F.normalize(normal.new_tensor(LIGHT_DIRECTION), dim=0)
    return AMBIENT + DIFFUSE * (normal @ light)


def role_colors(main: str, accent: str) -> Tensor:  # [3, 3]
    """The sRGB colours of the roles MAIN, ACCENT, DETAIL, by the names of `objects.COLORS`."""
    return torch.tensor([COLORS[main], COLORS[accent], DETAIL_COLOR])


def shaded_coverage(view: SurfaceView, supersample: int) -> Tensor:
    """Antialiased layers [B, 4, H / s, W / s]: shaded coverage of the three roles, then coverage.

    A picture is linear in the colours: sum of role colours times their layers, plus the
    background times one less the coverage.
    """
    shade = shading(view.normal) * view.mask
    layers = [shade * (view.role == role) for role in ROLES] + [view.mask.float()]
    return F.avg_pool2d(torch.stack(layers, 1), supersample)


def composite(layers: Tensor, colors: Tensor, background: Tensor) -> Tensor:
    """Pictures from layers: [B, 4, H, W], colors [B, 3 roles, 3], background [B, 3] -> [B, 3, H, W] in [0, 1]."""
    foreground = torch.einsum("brhw,brc->bchw", layers[:, :3], colors)
    return foreground + (1 - layers[:, 3:]) * background[:, :, None, None]


def render(
    kind: Kind, main: str, accent: str, c2w: Tensor, fovy: Tensor, size: int, background: Tensor, supersample: int = 2
) -> tuple[Tensor, Tensor]:
    """Antialiased pictures of one object: -> rgb [B, 3, size, size], coverage [B, size, size], both in [0, 1].

    c2w [B, 4, 4], fovy [B] in radians, background [B, 3] in [0, 1].
    """
    view = surface_view(kind, c2w, fovy, size * supersample, size * supersample)
    layers = shaded_coverage(view, supersample)
    colors = role_colors(main, accent).to(c2w).expand(len(c2w), -1, -1)
    return composite(layers, colors, background), layers[:, 3]
