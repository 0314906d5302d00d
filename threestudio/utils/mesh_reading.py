"""Meshes that others made: GLB, glTF, OBJ, PLY, STL and OFF files to a Mesh in the world's axes, with its colours."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, List, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from threestudio.models.mesh import Mesh
from threestudio.utils.errors import UserError
from threestudio.utils.glb_files import linear_to_srgb, srgb_to_linear
from threestudio.utils.mesh_checks import check_obj_materials, check_whole

if TYPE_CHECKING:
    import trimesh

ENDINGS = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
AXES = ("+x", "+y", "+z", "-x", "-y", "-z")
GREY = 0.5


@dataclass
class SurfaceColors:
    """The colours of a mesh's faces, textures included: `mesh.extras["colors"]` of a mesh read from a file."""

    corner_rgb: Tensor  # [F, 3, 3] sRGB in [0, 1]: vertex colours and plain materials
    corner_uv: Tensor  # [F, 3, 2], v down as in images
    texture_index: Tensor  # [F] index into textures, -1: none
    textures: List[Tensor]  # each [H, W, 3] sRGB in [0, 1]

    def at(self, face: Tensor, barycentric: Tensor) -> Tensor:
        """Colours [N, 3] at points of faces [N] given by barycentric coordinates [N, 3]; textures are bilinear."""
        face_cpu = face.cpu()
        weights = barycentric.detach().cpu().float()[..., None]
        color = (self.corner_rgb[face_cpu] * weights).sum(1)
        uv = (self.corner_uv[face_cpu] * weights).sum(1)
        index = self.texture_index[face_cpu]
        for i, texture in enumerate(self.textures):
            chosen = (index == i).nonzero()[:, 0]
            texel = sample_bilinear(texture, uv[chosen])
            color[chosen] = _multiplied(texel, color[chosen])
        return color.to(barycentric.device)


def sample_bilinear(texture: Tensor, uv: Tensor) -> Tensor:
    """texture [H, W, C], uv [N, 2] with v down; repeats outside of [0, 1], as glTF's default sampler does. -> [N, C]"""
    height, width = texture.shape[:2]
    position = uv * uv.new_tensor([width, height]) - 0.5
    low = position.floor()
    fraction = position - low
    result = uv.new_zeros(uv.shape[0], texture.shape[-1])
    for dx in (0, 1):
        for dy in (0, 1):
            x, y = (low[:, 0].long() + dx) % width, (low[:, 1].long() + dy) % height
            weight = (fraction[:, 0] if dx else 1 - fraction[:, 0]) * (fraction[:, 1] if dy else 1 - fraction[:, 1])
            result += weight[:, None] * texture[y, x]
    return result


def _multiplied(color: Tensor, tint: Tensor) -> Tensor:
    """Products of sRGB colours are taken in linear light; a white tint changes nothing."""
    if bool((tint == 1).all()):
        return color
    product = srgb_to_linear(color.numpy()) * srgb_to_linear(tint.numpy())
    return torch.from_numpy(linear_to_srgb(product)).to(color)


def load_mesh_file(
    path: str, up: Optional[str] = None, front: Optional[str] = None, colors: bool = True, key: str = "mesh file"
) -> Mesh:
    """Reads a mesh; vertices at one place become one, so that a closed surface is a closed mesh.

    Args:
        up, front: the file's axes that become the world's up (+z) and front (+x), e.g. "+y"; None: those of the
            format, which are +y and +z for .glb and .gltf, else the world's own.
        colors: also read vertex colours, materials and textures: ``v_rgb`` [Nv, 3] (of a texture, its colours at
            the vertices) and ``extras["colors"]``, a SurfaceColors. Both are grey, and ``extras["has_colors"]`` is
            False, where the file has none.
        key: what an error message begins with, e.g. the config's key.
    Raises UserError, in one line, for a file that is missing, cut short, of another kind, without triangles, with
    coordinates that are not finite, or (where colours are read) without a texture that it names.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending not in ENDINGS:
        raise UserError(f"{key}: expected a file ending in {', '.join(ENDINGS)}, got {path}")
    if not os.path.isfile(path):
        raise UserError(f"{key}: no file {path}")
    try:
        check_whole(path, ending)
        if colors:
            check_obj_materials(path, ending)
        parts = _read_parts(path)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    if not parts:
        raise UserError(f"{key}: {path} has no triangles")
    rotation = rotation_to_world(*_axes(ending, up, front))
    return _joined(path, parts, rotation, colors, linear=ending in (".glb", ".gltf"), key=key)


def _axes(ending: str, up: Optional[str], front: Optional[str]) -> Tuple[str, str]:
    defaults = ("+y", "+z") if ending in (".glb", ".gltf") else ("+z", "+x")  # glTF 2.0, section 3.4
    return up or defaults[0], front or defaults[1]


def rotation_to_world(up: str, front: str) -> np.ndarray:
    """Matrix [3, 3] that turns a file's front to +x and its up to +z."""
    for name, axis in (("up", up), ("front", front)):
        if axis not in AXES:
            raise UserError(f"the axis {name} of a mesh file: expected one of {', '.join(AXES)}, got {axis!r}")
    if up[1] == front[1]:
        raise UserError(f"the axes of a mesh file: expected up and front along different axes, got {up} and {front}")
    x, z = (np.eye(3)["xyz".index(axis[1])] * (1.0 if axis[0] == "+" else -1.0) for axis in (front, up))
    return np.stack([x, np.cross(z, x), z])


def _read_parts(path: str) -> List[Tuple["trimesh.Trimesh", np.ndarray]]:
    """The meshes of the file, each with its place [4, 4]."""
    import trimesh

    try:
        scene = trimesh.load_scene(path, process=False)
    except Exception as error:  # every format's reader raises its own types; each means a broken file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read, it is broken or cut short ({reason})") from error
    parts = []
    for node in scene.graph.nodes_geometry:
        place, name = scene.graph[node]
        solid = scene.geometry[name]
        if isinstance(solid, trimesh.Trimesh) and len(solid.faces) > 0:
            if solid.faces.min() < 0 or solid.faces.max() >= len(solid.vertices):
                raise UserError(f"{path} is broken: a triangle names a vertex that is not there")
            parts.append((solid, place))
    return parts


def _joined(
    path: str,
    parts: List[Tuple["trimesh.Trimesh", np.ndarray]],
    rotation: np.ndarray,
    colors: bool,
    linear: bool,
    key: str,
) -> Mesh:
    """One mesh of all parts, in the world's axes."""
    corners, rgb, uv, index, textures, colored = [], [], [], [], [], False
    for solid, place in parts:
        vertices = (np.asarray(solid.vertices) @ place[:3, :3].T + place[:3, 3]) @ rotation.T
        faces = np.asarray(solid.faces)
        if np.linalg.det(place[:3, :3]) < 0:  # mirrored: what was outside is inside
            faces = faces[:, ::-1]
        corners.append(vertices[faces])
        if not colors:
            continue
        look = _look_of(solid, linear)
        colored = colored or look.colored
        rgb.append(look.rgb[faces])
        uv.append(look.uv[faces])
        index.append(np.full(len(faces), len(textures) if look.texture is not None else -1))
        textures += [] if look.texture is None else [look.texture]
    triangles = np.concatenate(corners).astype(np.float32)  # [F, 3, 3]
    broken = int((~np.isfinite(triangles)).any((1, 2)).sum())
    if broken:
        raise UserError(f"{key}: {path} has {broken} triangles with coordinates that are not finite")
    unique, t_pos_idx = np.unique(triangles.reshape(-1, 3), axis=0, return_inverse=True)
    t_pos_idx = t_pos_idx.reshape(-1, 3)
    kept = (t_pos_idx != np.roll(t_pos_idx, 1, axis=1)).all(1)  # those that were points or lines are gone
    if not kept.any():
        raise UserError(f"{key}: the triangles of {path} have no area")
    t_pos_idx = t_pos_idx[kept]
    order = [2, 1, 0] if _inside_out(unique, t_pos_idx) else [0, 1, 2]
    indices = torch.from_numpy(t_pos_idx[:, order].astype(np.int64))
    mesh = Mesh(torch.from_numpy(unique), indices, has_colors=colored)
    if colors:
        surface = SurfaceColors(
            torch.from_numpy(np.concatenate(rgb)[kept][:, order]).float(),
            torch.from_numpy(np.concatenate(uv)[kept][:, order]).float(),
            torch.from_numpy(np.concatenate(index)[kept]),
            [torch.from_numpy(texture) for texture in textures],
        )
        mesh.add_extra("colors", surface)
        mesh.set_vertex_color(vertex_colors(mesh, surface))
    return mesh


def _inside_out(vertices: np.ndarray, faces: np.ndarray) -> bool:
    """Whether it is a closed surface whose triangles all face inwards."""
    import trimesh

    solid = trimesh.Trimesh(vertices, faces, process=False)
    return bool(solid.is_watertight and solid.is_winding_consistent and solid.volume < 0)


def vertex_colors(mesh: Mesh, colors: SurfaceColors) -> Tensor:
    """Mean colour [Nv, 3] of the corners that meet at each vertex."""
    n_faces = mesh.t_pos_idx.shape[0]
    total = torch.zeros(mesh.v_pos.shape[0], 3)
    count = torch.zeros(mesh.v_pos.shape[0], 1)
    for corner in range(3):
        barycentric = torch.zeros(n_faces, 3)
        barycentric[:, corner] = 1.0
        at = mesh.t_pos_idx[:, corner]
        total.index_add_(0, at, colors.at(torch.arange(n_faces), barycentric))
        count.index_add_(0, at, torch.ones(n_faces, 1))
    return total / count.clamp(min=1)


@dataclass
class _Look:
    rgb: np.ndarray  # [V, 3] sRGB
    uv: np.ndarray  # [V, 2], v down
    texture: Optional[np.ndarray]  # [H, W, 3] sRGB, float32
    colored: bool  # whether the file says any colour


def _look_of(solid: "trimesh.Trimesh", linear: bool) -> _Look:
    """Colours of one part; `linear`: its vertex colours and factors are in linear light, as glTF's are."""
    import trimesh

    n, visual = len(solid.vertices), solid.visual
    look = _Look(np.full((n, 3), GREY), np.zeros((n, 2)), None, False)
    if isinstance(visual, trimesh.visual.ColorVisuals):
        if visual.kind is None:
            return look
        return _Look(_srgb(_as_floats(visual.vertex_colors), linear), look.uv, None, True)
    rgb = np.ones((n, 3))
    if "color" in visual.vertex_attributes:
        rgb = rgb * _as_floats(visual.vertex_attributes["color"])
        look.colored = True
    image, factor = _base_color(visual.material)
    if image is not None and visual.uv is not None and len(visual.uv) == n:
        look.texture = np.asarray(image.convert("RGB"), np.float32) / 255.0
        look.uv = np.asarray(visual.uv)[:, :2] * [1.0, -1.0] + [0.0, 1.0]
        look.colored = True
    if factor is not None:
        rgb = rgb * factor
        look.colored = True
    look.rgb = _srgb(rgb, linear) if look.colored else look.rgb
    return look


def _base_color(material: Any) -> Tuple[Any, Optional[np.ndarray]]:
    """A material's picture and factor [3], each None where it has none."""
    import trimesh

    if isinstance(material, trimesh.visual.material.PBRMaterial):
        factor = material.baseColorFactor
        return material.baseColorTexture, None if factor is None else _as_floats(np.atleast_2d(factor))[0]
    if isinstance(material, trimesh.visual.material.SimpleMaterial):
        if material.image is not None:  # its plain colour is what stands in for the picture
            return material.image, None
        return None, _as_floats(np.atleast_2d(material.diffuse))[0]
    return None, None


def _as_floats(colors: Any) -> np.ndarray:
    """[N, 3] in [0, 1] of integers or floats with three or four channels."""
    colors = np.asarray(colors)
    scale = float(np.iinfo(colors.dtype).max) if colors.dtype.kind in "iu" else 1.0
    return (colors[:, :3] / scale).clip(0.0, 1.0)


def _srgb(rgb: np.ndarray, linear: bool) -> np.ndarray:
    return linear_to_srgb(rgb) if linear else rgb
