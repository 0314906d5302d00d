"""Meshes to binary glTF 2.0: y up and front +z, as glTF demands, with a material that is not metal."""

from typing import Any

import numpy as np
from PIL import Image

from threestudio.utils.images import rgb_image, srgb_to_linear

_VERTICES, _INDICES = 34962, 34963  # ARRAY_BUFFER and ELEMENT_ARRAY_BUFFER of glTF 2.0, section 5.11.5


def world_to_gltf(vectors: Any) -> Any:  # an array or a tensor [..., 3]
    """Vectors in glTF's axes: the world's front +x becomes +z, its up +z becomes +y."""
    return vectors[..., [1, 2, 0]]


def write_glb(
    path: str,
    v_pos: np.ndarray,  # [V, 3]
    t_pos_idx: np.ndarray,  # [F, 3]
    v_nrm: np.ndarray | None = None,  # [V, 3]
    v_rgb: np.ndarray | None = None,  # [V, 3], sRGB in [0, 1]
    v_tex: np.ndarray | None = None,  # [T, 2], v down as in images
    t_tex_idx: np.ndarray | None = None,  # [F, 3]
    base_color: np.ndarray | None = None,  # [H, W, 3], sRGB in [0, 1]
    metallic: np.ndarray | None = None,  # [H, W, 1] in [0, 1]
    roughness: np.ndarray | None = None,  # [H, W, 1] in [0, 1]
    normal_map: np.ndarray | None = None,  # [H, W, 3] in [0, 1], +y up
    v_tng: np.ndarray | None = None,  # [T, 4] by texture coordinate, with the normal map: see texture_baking
) -> str:
    """Writes one mesh with vertex colours or textures."""
    import trimesh

    visual, attributes = None, {}
    if v_tex is not None and base_color is not None:
        # glTF has one index a corner: each pair of position and texture coordinate is one vertex.
        pairs = np.stack([t_pos_idx.reshape(-1), t_tex_idx.reshape(-1)], axis=1)
        unique, corners = np.unique(pairs, axis=0, return_inverse=True)
        position, texture = unique.T
        faces = corners.reshape(-1, 3)
        visual = trimesh.visual.TextureVisuals(
            uv=v_tex[texture] * [1.0, -1.0] + [0.0, 1.0],
            material=_textured_material(base_color, metallic, roughness, normal_map),
        )
        if normal_map is not None and v_tng is not None:
            turned = world_to_gltf(v_tng[texture, :3])
            attributes["TANGENT"] = np.concatenate([turned, v_tng[texture, 3:]], axis=1)
    else:
        position, faces = np.arange(len(v_pos)), t_pos_idx
        if v_rgb is not None:
            # Linear light. As floats: eight bits of linear light show steps where it is dark.
            attributes["COLOR_0"] = srgb_to_linear(v_rgb)
    mesh = trimesh.Trimesh(
        vertices=world_to_gltf(v_pos[position]),
        faces=faces,
        vertex_normals=None if v_nrm is None else world_to_gltf(v_nrm[position]),
        visual=visual,
        process=False,
        # trimesh writes attributes that it does not know under a leading underscore.
        vertex_attributes={f"_{name}": value.astype(np.float32) for name, value in attributes.items()},
    )
    content = trimesh.exchange.gltf.export_glb(
        mesh,
        include_normals=v_nrm is not None,
        unitize_normals=True,
        tree_postprocessor=lambda tree: _finish(tree, list(attributes)),
    )
    with open(path, "wb") as file:
        file.write(content)
    return path


def _finish(tree: dict[str, Any], attributes: list[str]) -> None:
    """Gives attributes the names that glTF knows, a mesh of vertex colours a material, and buffers their targets.

    glTF's default material is all metal, which viewers show as dark as what it mirrors.
    """
    for mesh in tree["meshes"]:
        for primitive in mesh["primitives"]:
            for name in attributes:
                primitive["attributes"][name] = primitive["attributes"].pop(f"_{name}")
            vertices, indices = primitive["attributes"].values(), [primitive["indices"]]
            for accessors, target in ((vertices, _VERTICES), (indices, _INDICES)):
                for accessor in accessors:
                    tree["bufferViews"][tree["accessors"][accessor]["bufferView"]]["target"] = target
            if "material" not in primitive:
                tree["materials"] = [{"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0}}]
                primitive["material"] = 0


def _textured_material(
    base_color: np.ndarray,
    metallic: np.ndarray | None,
    roughness: np.ndarray | None,
    normal_map: np.ndarray | None,
) -> Any:
    import trimesh

    surface = None
    if metallic is not None or roughness is not None:
        # glTF 2.0, section 3.9.2: roughness in green, metalness in blue.
        ones = np.ones(base_color.shape[:2] + (1,), np.float32)
        green = ones if roughness is None else roughness
        blue = 0 * ones if metallic is None else metallic
        surface = _image(np.concatenate([ones, green, blue], axis=-1))
    return trimesh.visual.material.PBRMaterial(
        baseColorTexture=_image(base_color),
        metallicRoughnessTexture=surface,
        normalTexture=None if normal_map is None else _image(normal_map),
        metallicFactor=0.0 if metallic is None else 1.0,
        roughnessFactor=1.0,
    )


def _image(texture: np.ndarray) -> Image.Image:
    return Image.fromarray(rgb_image(texture))
