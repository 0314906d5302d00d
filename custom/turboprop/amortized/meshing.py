"""Closed, coloured meshes from a prompt's signed distance field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from threestudio.utils.glb_files import write_glb

from .field import Field

if TYPE_CHECKING:
    import trimesh

POINTS_AT_ONCE = 2**18


class EmptyField(ValueError):
    """A field without a surface."""


@dataclass
class MeshStatistics:
    faces: int
    vertices: int
    watertight: bool
    dropped_components: int


@torch.no_grad()
def query_grid(field: Field, resolution: int) -> np.ndarray:
    """Signed distances [G, G, G] (x, y, z) of the first prompt at points that span the cube, corners included."""
    line = torch.linspace(-field.radius, field.radius, resolution, device=field.device)
    points = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)
    owner = torch.zeros(POINTS_AT_ONCE, dtype=torch.int64, device=points.device)
    values = [field.signed_distance(part, owner[: len(part)]) for part in points.split(POINTS_AT_ONCE)]
    return torch.cat(values).reshape((resolution,) * 3).cpu().numpy()


def extract_mesh(
    field: Field,
    color_of: Callable[[Tensor, Tensor], Tensor],
    resolution: int,
    min_component: float,
    level: float,  # signed distance of the surface, world units
) -> tuple[trimesh.Trimesh, MeshStatistics]:
    """A level of one prompt's field, closed at the cube's sides, without small pieces.

    color_of(points [N, 3], features [N, F]) -> sRGB [N, 3] in [0, 1]. `min_component` is the
    least number of faces of a piece, as a share of the largest piece's. World units, z up.
    Raises EmptyField where no point is inside.
    """
    import trimesh
    from skimage.measure import marching_cubes

    distance = query_grid(field, resolution) - level
    if distance.min() >= 0:
        raise EmptyField(f"the field is empty: its signed distance is {distance.min() + level:.3g} or more everywhere")
    spacing = 2 * field.radius / (resolution - 1)
    # Far outside, so that a field which is inside at the cube's sides ends there and not a voxel later.
    beyond = max(spacing, 20 * float(-distance.min()))
    padded = np.pad(distance, 1, constant_values=beyond)
    vertices, faces, _, _ = marching_cubes(padded, 0.0)
    vertices = (vertices - 1) * spacing - field.radius
    # marching_cubes winds faces towards growing values, which for a distance is outwards.
    mesh = trimesh.Trimesh(vertices, faces[:, ::-1], process=True)
    if mesh.volume < 0:
        mesh.invert()
    mesh, dropped = _without_small_pieces(mesh, min_component)
    mesh.visual.vertex_colors = _vertex_colors(field, color_of, mesh.vertices)
    return mesh, MeshStatistics(len(mesh.faces), len(mesh.vertices), bool(mesh.is_watertight), dropped)


def _without_small_pieces(mesh: trimesh.Trimesh, min_component: float) -> tuple[trimesh.Trimesh, int]:
    import trimesh

    pieces = trimesh.graph.connected_components(mesh.face_adjacency, nodes=np.arange(len(mesh.faces)), min_len=1)
    largest = max(len(piece) for piece in pieces)
    kept = [piece for piece in pieces if len(piece) >= min_component * largest]
    if len(kept) < len(pieces):
        mesh.update_faces(np.isin(np.arange(len(mesh.faces)), np.concatenate(kept)))
        mesh.remove_unreferenced_vertices()
    return mesh, len(pieces) - len(kept)


@torch.no_grad()
def _vertex_colors(field: Field, color_of: Callable[[Tensor, Tensor], Tensor], vertices: np.ndarray) -> np.ndarray:
    """Opaque 8-bit RGBA [N, 4]."""
    points = torch.from_numpy(np.asarray(vertices)).to(field.device, field.space.dtype)
    features = field.features(points, torch.zeros(len(points), dtype=torch.int64, device=points.device))
    rgb = color_of(points, features).clamp(0, 1).float().cpu().numpy()
    return np.concatenate([(rgb * 255).round(), np.full((len(rgb), 1), 255.0)], 1).astype(np.uint8)


def write_mesh(mesh: trimesh.Trimesh, path: str) -> None:
    """Write OBJ (world axes, z up, colours by vertex) or GLB (glTF axes, y up), by the path's ending."""
    if path.endswith(".glb"):
        write_glb(path, mesh.vertices, mesh.faces, v_rgb=mesh.visual.vertex_colors[:, :3] / 255.0)
    else:
        mesh.export(path)
