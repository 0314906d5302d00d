"""Meshes to files: OBJ with materials (z up, as the world is) and GLB (y up, as glTF demands)."""

import os
from typing import Any, Iterable, Optional

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
    v_nrm: Optional[np.ndarray] = None,  # [V, 3]
    v_tex: Optional[np.ndarray] = None,  # [T, 2], v down as in images
    t_tex_idx: Optional[np.ndarray] = None,  # [F, 3]
    v_rgb: Optional[np.ndarray] = None,  # [V, 3], in [0, 1]
    mtllib: Optional[str] = None,
    material: Optional[str] = None,
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


def write_material(
    path: str, material: str, maps: dict[str, Any], map_format: str = "jpg"
) -> list[str]:
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
        (picture if channels == 3 else picture.convert("L")).save(texture_path)
        written.append(texture_path)
        lines.append(f"{keyword} {name}")
    write_text(path, "\n".join(lines) + "\n")
    return [path, *written]


_Z_UP_TO_Y_UP = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]])  # front +x to +z, up +z to +y


def write_glb(
    path: str,
    v_pos: np.ndarray,  # [V, 3]
    t_pos_idx: np.ndarray,  # [F, 3]
    v_nrm: Optional[np.ndarray] = None,  # [V, 3]
    v_rgb: Optional[np.ndarray] = None,  # [V, 3], sRGB in [0, 1]
    v_tex: Optional[np.ndarray] = None,  # [T, 2], v down as in images
    t_tex_idx: Optional[np.ndarray] = None,  # [F, 3]
    base_color: Optional[np.ndarray] = None,  # [H, W, 3], sRGB in [0, 1]
) -> str:
    """Writes a binary glTF file with vertex colours or a texture."""
    import trimesh

    if base_color is not None and v_tex is not None:
        # glTF has one index a corner: each pair of position and texture coordinate is one vertex.
        pairs = np.stack([t_pos_idx.reshape(-1), t_tex_idx.reshape(-1)], axis=1)
        unique, corners = np.unique(pairs, axis=0, return_inverse=True)
        vertices, faces = v_pos[unique[:, 0]], corners.reshape(-1, 3)
        normals = None if v_nrm is None else v_nrm[unique[:, 0]]
        uv = v_tex[unique[:, 1]] * [1.0, -1.0] + [0.0, 1.0]
        material = trimesh.visual.material.PBRMaterial(
            baseColorTexture=Image.fromarray(rgb_image(base_color)),
            metallicFactor=0.0,
            roughnessFactor=1.0,
        )
        visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    else:
        vertices, faces, normals = v_pos, t_pos_idx, v_nrm
        colors = None if v_rgb is None else (srgb_to_linear(v_rgb) * 255).round().astype(np.uint8)
        visual = None if colors is None else trimesh.visual.ColorVisuals(vertex_colors=colors)
    mesh = trimesh.Trimesh(
        vertices=vertices @ _Z_UP_TO_Y_UP.T,
        faces=faces,
        vertex_normals=None if normals is None else normals @ _Z_UP_TO_Y_UP.T,
        process=False,
    )
    if visual is not None:
        mesh.visual = visual
    with open(path, "wb") as file:
        file.write(trimesh.exchange.gltf.export_glb(mesh, include_normals=normals is not None))
    return path


def srgb_to_linear(color: np.ndarray) -> np.ndarray:
    """Inverse sRGB transfer function (IEC 61966-2-1); glTF's vertex colours are linear."""
    color = np.clip(color, 0.0, 1.0)
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
