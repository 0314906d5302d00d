"""Where the first Gaussians come from: a ball, points, a mesh's surface, or other Gaussians."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, NamedTuple, Optional, Tuple, Union

import numpy as np
import torch
from torch import Tensor

from .parameters import Parameters
from .ply import gaussians_of, is_gaussian_ply, points_of, read_ply_vertices

MESH_ENDINGS = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
NEIGHBOURS = 3  # Kerbl et al. 2023, section 5.1
GREY = 0.5
# glTF has y up and looks along +z; this world has z up and looks along +x. (x, y, z) -> (z, x, y)
GLTF_TO_WORLD = [2, 0, 1]


# indices of triangles [N] and weights of their corners [N, 3] -> colours [N, 3] in [0, 1]
ColorAt = Callable[[Tensor, Tensor], Tensor]


class ColoredPoints(NamedTuple):
    points: Tensor  # [N, 3] world units
    colors: Tensor  # [N, 3] sRGB in [0, 1]


def ball_points(count: int, radius: float) -> ColoredPoints:
    """Points drawn uniformly from a ball around the origin, with greys near the middle."""
    direction = torch.nn.functional.normalize(torch.randn(count, 3), dim=-1)
    distance = radius * torch.rand(count, 1) ** (1 / 3)
    return ColoredPoints(direction * distance, GREY + 0.1 * (torch.rand(count, 3) - 0.5))


def sphere_points(count: int, radius: float) -> ColoredPoints:
    """Points drawn uniformly from a sphere around the origin."""
    direction = torch.nn.functional.normalize(torch.randn(count, 3), dim=-1)
    return ColoredPoints(direction * radius, GREY + 0.1 * (torch.rand(count, 3) - 0.5))


def surface_points(
    v_pos: Tensor,  # [V, 3]
    t_pos_idx: Tensor,  # [F, 3]
    color_at: Optional[ColorAt],  # None: grey
    count: int,
) -> ColoredPoints:
    """Points drawn uniformly from a surface. Raises ValueError for one without area."""
    corners = v_pos[t_pos_idx]  # [F, 3, 3]
    areas = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0], dim=-1).norm(dim=-1)
    if not bool(areas.sum() > 0):
        raise ValueError("the surface to draw points from has no area")
    # Inverse of the cumulative sum: torch.multinomial stops at 2^24 faces.
    total = areas.double().cumsum(0)
    face = torch.searchsorted(total, torch.rand(count, dtype=torch.float64, device=areas.device) * total[-1])
    face = face.clamp(max=len(areas) - 1)
    # Uniform in a triangle (Osada et al. 2002, Shape Distributions, eq. 1).
    root, along = torch.rand(count, device=areas.device).sqrt(), torch.rand(count, device=areas.device)
    weights = torch.stack([1 - root, root * (1 - along), root * along], -1)
    points = (weights[..., None] * corners[face]).sum(1)
    if color_at is None:
        return ColoredPoints(points, torch.full_like(points, GREY))
    return ColoredPoints(points, color_at(face, weights).to(points).clamp(0, 1))


def vertex_color_at(v_rgb: Tensor, t_pos_idx: Tensor) -> ColorAt:
    """Colours of a mesh by its vertices' [V, 3]."""
    return lambda face, weights: (weights[..., None] * v_rgb[t_pos_idx[face]]).sum(1)


def mesh_file_points(path: Union[str, Path], count: int) -> ColoredPoints:
    """Points of a mesh file's surface with its vertex colours, texture or plain material; GLB's y up becomes z up.

    Raises FileNotFoundError; ValueError, in one line with the path, for what is no mesh.
    """
    import trimesh

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no mesh file at {path}")
    try:
        scene = trimesh.load_scene(path)
        for part in scene.geometry.values():
            _keep_colors_beside_material(part)
        mesh = scene.to_mesh()
    except Exception as error:  # trimesh's readers raise what they like for a broken file
        raise ValueError(f"{path}: not a readable mesh ({type(error).__name__}: {error})") from error
    if not isinstance(mesh, trimesh.Trimesh) or len(mesh.faces) == 0:
        raise ValueError(f"{path}: has no triangles")
    is_gltf = path.suffix.lower() in (".glb", ".gltf")
    vertices = torch.from_numpy(np.asarray(mesh.vertices, np.float32))
    if not bool(torch.isfinite(vertices).all()):
        raise ValueError(f"{path}: a vertex is not finite")
    faces, colors = torch.from_numpy(np.asarray(mesh.faces, np.int64)), _vertex_colors(mesh.visual, is_gltf)
    color_at = None if colors is None else vertex_color_at(torch.from_numpy(colors), faces)
    return surface_points(vertices[:, GLTF_TO_WORLD] if is_gltf else vertices, faces, color_at, count)


def _keep_colors_beside_material(part) -> None:
    """A glTF mesh of vertex colours has a material too; trimesh drops such colours where it joins meshes."""
    import trimesh

    visual = part.visual
    if isinstance(visual, trimesh.visual.TextureVisuals) and visual.uv is None and "color" in visual.vertex_attributes:
        part.visual = trimesh.visual.ColorVisuals(part, vertex_colors=visual.vertex_attributes["color"])


def _vertex_colors(visual, is_gltf: bool) -> Optional[np.ndarray]:
    """sRGB [V, 3] in [0, 1] of a trimesh visual; None where it has no colours."""
    if visual.kind is None:
        return None
    if visual.kind == "texture":
        visual, is_gltf = visual.to_color(), False  # textures are sRGB everywhere
    colors = np.asarray(visual.vertex_colors)[:, :3].astype(np.float32) / 255.0
    if is_gltf:  # glTF's vertex colours are linear, ours sRGB (IEC 61966-2-1)
        colors = np.where(
            colors <= 0.0031308, 12.92 * colors, 1.055 * np.maximum(colors, 0.0031308) ** (1 / 2.4) - 0.055
        )
    return colors.astype(np.float32)


def file_points(path: Union[str, Path], count: int) -> ColoredPoints:
    """All points of a point cloud (PLY without faces), or `count` points of a mesh's surface."""
    path = Path(path)
    if path.suffix.lower() not in MESH_ENDINGS:
        raise ValueError(f"{path}: expected a file that ends in one of {', '.join(MESH_ENDINGS)}")
    if path.suffix.lower() == ".ply":
        vertices = read_ply_vertices(path)
        if not vertices.has_faces:
            points, colors = points_of(path, vertices.columns)
            return ColoredPoints(points, torch.full_like(points, GREY) if colors is None else colors)
    return mesh_file_points(path, count)


def read_gaussians_or_points(
    path: Union[str, Path], count: int
) -> Tuple[Optional[Parameters], Optional[ColoredPoints]]:
    """(raw parameters, None) of a 3D Gaussian PLY, else (None, ColoredPoints)."""
    path = Path(path)
    if path.suffix.lower() == ".ply":
        vertices = read_ply_vertices(path)
        if is_gaussian_ply(vertices.columns):
            return gaussians_of(path, vertices.columns), None
    return None, file_points(path, count)


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
