"""The base colour of glTF's materials: factor, texture, and where the texture lies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from threestudio.utils.errors import UserError
from threestudio.utils.mesh_reading.gltf_container import GltfFile
from threestudio.utils.mesh_reading.gltf_extensions import (
    KTX2,
    PICTURES,
    SPECULAR_GLOSSINESS,
    TEXTURE_TRANSFORM,
    unread_extension,
)
from threestudio.utils.mesh_reading.surface_colors import Texture

_WRAPS = {10497: "repeat", 33648: "mirror", 33071: "clamp"}  # glTF 2.0, section 5.26
_NEAREST = 9728


@dataclass
class BaseColor:
    factor: np.ndarray  # [3] linear light in [0, 1]
    texture: Texture | None = None
    uv_set: int = 0  # which of the vertices' texture coordinates
    uv_matrix: np.ndarray | None = None  # [2, 3] of (u, v, 1), v down; None: as they are


class GltfMaterials:
    """The base colours of a file's materials, each made once."""

    def __init__(self, file: GltfFile) -> None:
        self._file = file
        self._made: dict[int, BaseColor] = {}

    def base_color(self, index: int) -> BaseColor:
        if index not in self._made:
            self._made[index] = self._base_color(self._file.item("materials", index))
        return self._made[index]

    def _base_color(self, material: dict[str, Any]) -> BaseColor:
        """That of metal and roughness (section 3.9.2), or the diffuse one where there is specular-glossiness."""
        gloss = material.get("extensions", {}).get(SPECULAR_GLOSSINESS)
        if gloss is not None:
            factor, info = gloss.get("diffuseFactor"), gloss.get("diffuseTexture")
        else:
            surface = material.get("pbrMetallicRoughness", {})
            factor, info = surface.get("baseColorFactor"), surface.get("baseColorTexture")
        color = BaseColor(np.clip(np.array(factor or [1.0] * 4, np.float64)[:3], 0, 1))
        if info is not None:
            transform = info.get("extensions", {}).get(TEXTURE_TRANSFORM, {})
            color.texture = self._texture(self._file.item("textures", info["index"]))
            color.uv_set = transform.get("texCoord", info.get("texCoord", 0))
            color.uv_matrix = uv_matrix(transform) if transform else None
        return color

    def _texture(self, texture: dict[str, Any]) -> Texture | None:
        source = self._source(texture)
        if source is None:
            return None
        sampler = self._file.item("samplers", texture["sampler"]) if "sampler" in texture else {}
        wraps = [sampler.get(key, 10497) for key in ("wrapS", "wrapT")]
        if not all(wrap in _WRAPS for wrap in wraps):
            raise UserError(f"{self._file.path} is broken: a sampler wraps by {wraps}, expected {list(_WRAPS)}")
        nearest = sampler.get("magFilter") == _NEAREST
        return Texture(self._file.picture(source), _WRAPS[wraps[0]], _WRAPS[wraps[1]], nearest)

    def _source(self, texture: dict[str, Any]) -> int | None:
        """The image of a texture: that of an extension whose pictures are read, else its own."""
        extensions = texture.get("extensions", {})
        for name in PICTURES:
            if name in extensions:
                return extensions[name]["source"]
        source = texture.get("source")
        if source is None:
            unread = next((name for name, value in extensions.items() if "source" in value), None)
            if unread is not None:
                raise unread_extension(self._file.path, unread)
        elif self._file.item("images", source).get("mimeType") == "image/ktx2":
            raise unread_extension(self._file.path, KTX2)
        return source


def uv_matrix(transform: dict[str, Any]) -> np.ndarray:  # [2, 3]
    """KHR_texture_transform as a matrix: scale, then rotation, then offset.

    The rotation is counter-clockwise as one sees it with v down. (The listing in the extension's text turns the other
    way; Khronos' issue glTF#1563 and its test model TextureTransformTest settle it.)
    """
    cos, sin = math.cos(transform.get("rotation", 0.0)), math.sin(transform.get("rotation", 0.0))
    (scale_u, scale_v), (offset_u, offset_v) = transform.get("scale", (1, 1)), transform.get("offset", (0, 0))
    return np.array([[scale_u * cos, scale_v * sin, offset_u], [-scale_u * sin, scale_v * cos, offset_v]])
