"""Where the first Gaussians come from: a ball, points, a mesh's surface, or other Gaussians."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from threestudio.models.mesh import Mesh
from threestudio.utils.errors import errors_begin_with
from threestudio.utils.mesh_reading import GREY, load_mesh_file
from threestudio.utils.surface_sampling import cumulative_areas, draw_on_surface

from .parameters import Parameters
from .ply import gaussians_of, holds_gaussians, points_of, read_ply_vertices

NEIGHBOURS = 3  # Kerbl et al. 2023, section 5.1
GREY_SPREAD = 0.05  # of the colours of points that have none

# indices of triangles [N] and weights of their corners [N, 3] -> colours [N, 3] in [0, 1]
ColorAt = Callable[[Tensor, Tensor], Tensor]


class ColoredPoints(NamedTuple):
    points: Tensor  # [N, 3] world units
    colors: Tensor  # [N, 3] sRGB in [0, 1]


def ball_points(count: int, radius: float, spread: float = GREY_SPREAD) -> ColoredPoints:
    """Points drawn uniformly from a ball around the origin, with greys at most `spread` from the middle."""
    direction = torch.nn.functional.normalize(torch.randn(count, 3), dim=-1)
    distance = radius * torch.rand(count, 1) ** (1 / 3)
    return ColoredPoints(direction * distance, _greys(count, spread))


def sphere_points(count: int, radius: float, spread: float = GREY_SPREAD) -> ColoredPoints:
    """Points drawn uniformly from a sphere around the origin, with colours as of ball_points."""
    direction = torch.nn.functional.normalize(torch.randn(count, 3), dim=-1)
    return ColoredPoints(direction * radius, _greys(count, spread))


def _greys(count: int, spread: float) -> Tensor:
    """[count, 3], each channel by itself."""
    return GREY + 2 * spread * (torch.rand(count, 3) - 0.5)


def surface_points(
    v_pos: Tensor,  # [V, 3]
    t_pos_idx: Tensor,  # [F, 3]
    color_at: ColorAt | None,  # None: grey
    count: int,
) -> ColoredPoints:
    """Points drawn uniformly from a surface. Raises UserError for one without area."""
    face, weights = draw_on_surface(cumulative_areas(v_pos, t_pos_idx), count)
    points = (weights[..., None] * v_pos[t_pos_idx[face]]).sum(1)
    if color_at is None:
        return ColoredPoints(points, torch.full_like(points, GREY))
    return ColoredPoints(points, color_at(face, weights).to(points).clamp(0, 1))


def vertex_color_at(v_rgb: Tensor, t_pos_idx: Tensor) -> ColorAt:
    """Colours of a mesh by its vertices' [V, 3]."""
    return lambda face, weights: (weights[..., None] * v_rgb[t_pos_idx[face]]).sum(1)


def mesh_color_at(mesh: Mesh) -> ColorAt | None:
    """The colours of a mesh as its file has them, textures included; else its vertices'; None where it has none."""
    if mesh.extras.get("has_colors"):
        return mesh.extras["colors"].at
    if mesh.v_rgb is None or "has_colors" in mesh.extras:
        return None
    return vertex_color_at(mesh.v_rgb.detach(), mesh.t_pos_idx)


def mesh_points(mesh: Mesh, count: int) -> ColoredPoints:
    """Points of a mesh's surface with the colours that it has there, or grey."""
    return surface_points(mesh.v_pos.detach(), mesh.t_pos_idx, mesh_color_at(mesh), count)


def file_points(path: str | Path, count: int, key: str = "mesh file") -> ColoredPoints:
    """All points of a point cloud (PLY without faces), or `count` points of a mesh's surface.

    key: what an error message begins with. Raises UserError, in one line with the path, for what is neither.
    """
    path = str(path)
    if path.lower().endswith(".ply") and os.path.isfile(path):
        with errors_begin_with(key):
            vertices = read_ply_vertices(path)
            if not vertices.has_faces:
                points, colors = points_of(path, vertices.columns)
                return ColoredPoints(points, torch.full_like(points, GREY) if colors is None else colors)
    return mesh_points(load_mesh_file(path, key=key), count)


def read_gaussians_or_points(
    path: str | Path, count: int, key: str = "mesh file"
) -> tuple[Parameters | None, ColoredPoints | None]:
    """(raw parameters, None) of a 3D Gaussian PLY, else (None, ColoredPoints). Raises as file_points."""
    path = str(path)
    if path.lower().endswith(".ply") and os.path.isfile(path) and holds_gaussians(path):
        with errors_begin_with(key):
            return gaussians_of(path, read_ply_vertices(path).columns), None
    return None, file_points(path, count, key)


def point_spacing(points: Tensor, least: float = 1e-4) -> Tensor:
    """[N]: root mean square distance of points [N, 3] to their three nearest others; 0.1 for a lone one."""
    from scipy.spatial import cKDTree

    n = points.shape[0]
    if n < 2:
        return points.new_full((n,), 0.1)
    table = points.detach().cpu().double().numpy()
    distances, _ = cKDTree(table).query(table, k=min(NEIGHBOURS, n - 1) + 1)
    spacing = np.sqrt((distances[:, 1:] ** 2).mean(1))
    return torch.from_numpy(spacing).to(points).clamp(min=least)
