"""Meshes to OBJ with materials, PLY and STL; axes are written as they are given. GLB: see glb_files.py."""

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from threestudio.utils.images import rgb_image, to_numpy


def _lines(template: str, rows: np.ndarray) -> str:
    return "".join(map(template.__mod__, map(tuple, rows.tolist())))


def _face_template(corners: Iterable[str]) -> str:
    return "f " + " ".join(corners) + "\n"


def obj_text(
    v_pos: np.ndarray,  # [V, 3]
    t_pos_idx: np.ndarray,  # [F, 3]
    v_nrm: np.ndarray | None = None,  # [V, 3]
    v_tex: np.ndarray | None = None,  # [T, 2], v down as in images
    t_tex_idx: np.ndarray | None = None,  # [F, 3]
    v_rgb: np.ndarray | None = None,  # [V, 3], in [0, 1]
    mtllib: str | None = None,
    material: str | None = None,
) -> str:
    """The text of an OBJ file."""
    parts = [f"mtllib {mtllib}\n" if mtllib else "", "g object\n"]
    if v_rgb is None:
        parts.append(_lines("v %.6f %.6f %.6f\n", v_pos))
    else:
        colored = np.concatenate([v_pos, v_rgb], axis=1)
        parts.append(_lines("v %.6f %.6f %.6f %.4f %.4f %.4f\n", colored))
    if v_tex is not None:
        flipped = np.stack([v_tex[:, 0], 1.0 - v_tex[:, 1]], axis=1)
        parts.append(_lines("vt %.6f %.6f\n", flipped))
    if v_nrm is not None:
        parts.append(_lines("vn %.6f %.6f %.6f\n", v_nrm))
    parts.append(f"usemtl {material}\n" if material else "")
    corner, columns = "%d", [t_pos_idx + 1]
    if v_tex is not None:
        corner, columns = "%d/%d", [*columns, t_tex_idx + 1]
    if v_nrm is not None:
        corner = "%d/%d/%d" if v_tex is not None else "%d//%d"
        columns.append(t_pos_idx + 1)
    faces = np.stack(columns, axis=-1).reshape(len(t_pos_idx), -1)
    parts.append(_lines(_face_template([corner] * 3), faces))
    return "".join(parts)


def write_text(path: str, text: str) -> str:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


# MTL keyword, suffix of the texture's file, number of channels
_MAPS = {
    "map_Kd": ("texture_kd", 3),
    "map_Ks": ("texture_ks", 3),
    "map_Bump": ("texture_nrm", 3),
    "map_Pm": ("texture_metallic", 1),
    "map_Pr": ("texture_roughness", 1),
}


def write_material(path: str, material: str, maps: dict[str, Any], map_format: str = "jpg") -> list[str]:
    """Writes an MTL file and its textures ([H, W, C] in [0, 1], None = none) beside it."""
    lines = [f"newmtl {material}", "Ka 0.0 0.0 0.0", "Kd 1.0 1.0 1.0", "Ks 0.0 0.0 0.0"]
    written = []
    for keyword, (suffix, channels) in _MAPS.items():
        texture = to_numpy(maps.get(keyword))
        if texture is None:
            continue
        if texture.ndim == 2:
            texture = texture[..., None]
        name = f"{suffix}.{map_format}"
        texture_path = os.path.join(os.path.dirname(path), name)
        picture = Image.fromarray(rgb_image(texture))
        # JPEG's coarser colour planes would mix charts that lie side by side in the atlas.
        options = {"quality": 95, "subsampling": 0} if map_format.lower() in ("jpg", "jpeg") else {}
        (picture if channels == 3 else picture.convert("L")).save(texture_path, **options)
        written.append(texture_path)
        lines.append(f"{keyword} {name}")
    write_text(path, "\n".join(lines) + "\n")
    return [path, *written]


def write_ply(
    path: str,
    v_pos: np.ndarray,  # [V, 3]
    t_pos_idx: np.ndarray,  # [F, 3]
    v_nrm: np.ndarray | None = None,  # [V, 3]
    v_rgb: np.ndarray | None = None,  # [V, 3], in [0, 1]
) -> str:
    """Writes a binary PLY; colours have 8 bits a channel."""
    import trimesh

    colors = None if v_rgb is None else _to_rgba(v_rgb)
    mesh = trimesh.Trimesh(v_pos, t_pos_idx, vertex_normals=v_nrm, vertex_colors=colors, process=False)
    with open(path, "wb") as file:
        file.write(trimesh.exchange.ply.export_ply(mesh, vertex_normal=v_nrm is not None))
    return path


def write_stl(path: str, v_pos: np.ndarray, t_pos_idx: np.ndarray) -> str:
    """Writes a binary STL, which holds triangles alone."""
    import trimesh

    with open(path, "wb") as file:
        file.write(trimesh.exchange.stl.export_stl(trimesh.Trimesh(v_pos, t_pos_idx, process=False)))
    return path


def _to_rgba(v_rgb: np.ndarray) -> np.ndarray:
    rgb = (v_rgb.clip(0.0, 1.0) * 255.0).round().astype(np.uint8)
    return np.concatenate([rgb, np.full_like(rgb[:, :1], 255)], axis=1)
