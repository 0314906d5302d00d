"""A mesh file of any format that has a reader to a Mesh in the world's axes, with its colours."""

from __future__ import annotations

import os

import numpy as np
import torch

import threestudio
from threestudio.models.mesh import Mesh
from threestudio.utils.errors import UserError, errors_begin_with
from threestudio.utils.mesh_reading.part import GREY, MeshPart
from threestudio.utils.mesh_reading.registry import mesh_endings, mesh_reader_of
from threestudio.utils.mesh_reading.surface_colors import SurfaceColors, Texture
from threestudio.utils.value_checks import check_choice

AXES = ("+x", "+y", "+z", "-x", "-y", "-z")


def load_mesh_file(
    path: str, up: str | None = None, front: str | None = None, colors: bool = True, key: str = "mesh file"
) -> Mesh:
    """Reads a mesh; vertices at one place become one, so that a closed surface is a closed mesh.

    Args:
        up, front: the file's axes that become the world's up (+z) and front (+x), e.g. "+y"; None: those of the
            format, which are +y and +z for .glb and .gltf, else the world's own.
        colors: also read vertex colours, materials and textures: ``v_rgb`` [Nv, 3] (of a texture, its colours at
            the vertices) and ``extras["colors"]``, a SurfaceColors. Both are grey, and ``extras["has_colors"]`` is
            False, where the file has none.
        key: what an error message begins with, e.g. the config's key.
    Texture coordinates that the file has for all of its triangles are the mesh's (`Mesh.has_own_uv`).
    Raises UserError, in one line, for a file that is missing, cut short, of another kind, without triangles, with
    coordinates that are not finite, that needs an extension which is not read, or (where colours are read) without a
    texture that it names.
    """
    with errors_begin_with(key):
        if os.path.splitext(path)[1].lower() in mesh_endings():
            if not os.path.isfile(path):
                raise UserError(f"no file {path}")
            if os.path.getsize(path) == 0:
                raise UserError(f"{path} is empty")
        reader = mesh_reader_of(path)
        rotation = rotation_to_world(up or reader.up, front or reader.front)
        parts = [part for part in reader.read(path, colors) if len(part.corners)]
        if not parts:
            raise UserError(f"{path} has no triangles")
        return _joined(path, parts, rotation, colors)


def rotation_to_world(up: str, front: str) -> np.ndarray:
    """Matrix [3, 3] that turns a file's front to +x and its up to +z."""
    for name, axis in (("up", up), ("front", front)):
        check_choice(f"the axis {name} of a mesh file", axis, AXES)
    if up[1] == front[1]:
        raise UserError(f"the axes of a mesh file: expected up and front along different axes, got {up} and {front}")
    x, z = (np.eye(3)["xyz".index(axis[1])] * (1.0 if axis[0] == "+" else -1.0) for axis in (front, up))
    return np.stack([x, np.cross(z, x), z])


def _joined(path: str, parts: list[MeshPart], rotation: np.ndarray, colors: bool) -> Mesh:
    """One mesh of all parts, in the world's axes."""
    corners = np.concatenate([part.corners for part in parts])
    with np.errstate(over="ignore", invalid="ignore"):
        triangles = (corners @ rotation.T).astype(np.float32)  # [F, 3, 3]
    broken = int((~np.isfinite(triangles)).any((1, 2)).sum())
    if broken:
        raise UserError(f"{path} has {broken} triangles with coordinates that are not finite")
    unique, t_pos_idx = np.unique(triangles.reshape(-1, 3), axis=0, return_inverse=True)
    t_pos_idx = t_pos_idx.reshape(-1, 3)
    kept = (t_pos_idx != np.roll(t_pos_idx, 1, axis=1)).all(1)  # those that were points or lines are gone
    if not kept.any():
        raise UserError(f"the triangles of {path} have no area")
    t_pos_idx = t_pos_idx[kept]
    order = [2, 1, 0] if _inside_out(unique, t_pos_idx) else [0, 1, 2]
    faces = torch.from_numpy(t_pos_idx[:, order].astype(np.int64))
    mesh = Mesh(torch.from_numpy(unique), faces, has_colors=colors and any(part.colored for part in parts))
    if all(part.layout is not None for part in parts):
        _set_layout(mesh, np.concatenate([part.layout for part in parts])[kept][:, order])
    if colors:
        surface = _surface_colors(path, parts, kept, order)
        mesh.add_extra("colors", surface)
        mesh.set_vertex_color(surface.at_vertices(mesh.t_pos_idx, mesh.v_pos.shape[0]))
    return mesh


def _set_layout(mesh: Mesh, corner_uv: np.ndarray) -> None:  # [F, 3, 2], v down
    """Gives the mesh texture coordinates, each of one vertex and one handedness; not where some are missing.

    Halves that mirror one another in the picture may share the coordinates of their seam, but no tangents there.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        corner_uv = corner_uv.astype(np.float32)
    if not np.isfinite(corner_uv).all():
        return
    first, second = (corner_uv[:, i].astype(np.float64) - corner_uv[:, 0] for i in (1, 2))  # [F, 2]
    mirrored = np.repeat(first[:, 0] * second[:, 1] > first[:, 1] * second[:, 0], 3)  # v grows downwards
    rows = np.concatenate([mesh.t_pos_idx.numpy().reshape(-1, 1), mirrored[:, None], corner_uv.reshape(-1, 2)], 1)
    unique, index = np.unique(rows, axis=0, return_inverse=True)
    mesh.set_uv(torch.from_numpy(unique[:, 2:]).float(), torch.from_numpy(index.reshape(-1, 3).astype(np.int64)))


def _surface_colors(path: str, parts: list[MeshPart], kept: np.ndarray, order: list[int]) -> SurfaceColors:
    """Colours of the faces that are kept, with their corners in this order; what is not finite is said, and grey."""
    textures: list[Texture] = []
    rgb, uv, index = [], [], []
    for part in parts:
        shape = part.corners.shape[:2]
        plain = 1.0 if part.texture is not None else GREY
        rgb.append(np.full((*shape, 3), plain) if part.rgb is None else part.rgb)
        uv.append(np.zeros((*shape, 2)) if part.uv is None else part.uv)
        if part.texture is not None and not any(part.texture is texture for texture in textures):
            textures.append(part.texture)
        own = next((i for i, texture in enumerate(textures) if texture is part.texture), -1)
        index.append(np.full(shape[0], own))
    corner_rgb, corner_uv, texture_index = (np.concatenate(each)[kept] for each in (rgb, uv, index))
    no_place = ~np.isfinite(corner_uv).all((1, 2)) & (texture_index >= 0)
    no_color = ~np.isfinite(corner_rgb).all((1, 2)) | no_place
    if no_color.any():
        threestudio.warn(f"{path}: {no_color.sum()} triangles have colours that are not finite; they are grey")
        corner_rgb[no_color], corner_uv[no_place], texture_index[no_color] = GREY, 0.0, -1
    return SurfaceColors(
        torch.from_numpy(corner_rgb[:, order]).float(),
        torch.from_numpy(corner_uv[:, order]).float(),
        torch.from_numpy(texture_index),
        textures,
    )


def _inside_out(vertices: np.ndarray, faces: np.ndarray) -> bool:  # [V, 3], [F, 3]
    """Whether it is a closed surface whose triangles all face inwards."""
    import trimesh

    solid = trimesh.Trimesh(vertices, faces, process=False)
    return bool(solid.is_watertight and solid.is_winding_consistent and solid.volume < 0)
