"""Colours of a mesh's surface at any point of it: corner colours, and textures with their wrap modes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from threestudio.utils.images import linear_to_srgb, srgb_to_linear

WRAPS = ("repeat", "mirror", "clamp")


@dataclass
class Texture:
    """A picture on a surface, and how it goes on outside of [0, 1]."""

    texels: Tensor  # [H, W, 3] uint8, sRGB
    wrap_u: str = "repeat"  # one of WRAPS
    wrap_v: str = "repeat"
    nearest: bool = False  # take the nearest texel; else bilinear

    def at(self, uv: Tensor) -> Tensor:  # [N, 2], v down as in images
        """Colours [N, 3] in [0, 1]."""
        height, width = self.texels.shape[:2]
        position = uv * uv.new_tensor([width, height])
        if self.nearest:
            return self._texels_at(position.floor().long())
        position = position - 0.5
        low = position.floor()
        fraction = position - low
        result = uv.new_zeros(uv.shape[0], 3)
        for step in ((0, 0), (0, 1), (1, 0), (1, 1)):
            offset = low.new_tensor(step)
            weight = torch.where(offset == 1, fraction, 1 - fraction).prod(1, keepdim=True)
            result += weight * self._texels_at((low + offset).long())
        return result

    def _texels_at(self, index: Tensor) -> Tensor:  # [N, 2] column and row, anywhere
        height, width = self.texels.shape[:2]
        column, row = _wrapped(index[:, 0], width, self.wrap_u), _wrapped(index[:, 1], height, self.wrap_v)
        return self.texels[row, column].float() / 255.0


def _wrapped(index: Tensor, size: int, wrap: str) -> Tensor:  # [N] -> [N] in 0 .. size - 1
    if wrap == "clamp":
        return index.clamp(0, size - 1)
    if wrap == "mirror":
        index = index % (2 * size)
        return torch.where(index < size, index, 2 * size - 1 - index)
    return index % size


@dataclass
class SurfaceColors:
    """The colours of a mesh's faces, textures included: `mesh.extras["colors"]` of a mesh read from a file."""

    corner_rgb: Tensor  # [F, 3, 3] sRGB in [0, 1]; where a face has a texture, what it is multiplied by
    corner_uv: Tensor  # [F, 3, 2], v down as in images
    texture_index: Tensor  # [F] index into textures, -1: none
    textures: list[Texture]

    def at(self, face: Tensor, barycentric: Tensor) -> Tensor:
        """Colours [N, 3] at points of faces [N] given by barycentric coordinates [N, 3]."""
        face_cpu = face.cpu()
        weights = barycentric.detach().cpu().float()[..., None]
        color = (self.corner_rgb[face_cpu] * weights).sum(1)
        uv = (self.corner_uv[face_cpu] * weights).sum(1)
        index = self.texture_index[face_cpu]
        for i, texture in enumerate(self.textures):
            chosen = (index == i).nonzero()[:, 0]
            color[chosen] = _multiplied(texture.at(uv[chosen]), color[chosen])
        return color.to(barycentric.device)

    def at_vertices(self, t_pos_idx: Tensor, n_vertices: int) -> Tensor:  # [F, 3]
        """Mean colour [Nv, 3] of the corners that meet at each vertex."""
        n_faces = t_pos_idx.shape[0]
        total, count = torch.zeros(n_vertices, 3), torch.zeros(n_vertices, 1)
        for corner in range(3):
            barycentric = torch.zeros(n_faces, 3)
            barycentric[:, corner] = 1.0
            at = t_pos_idx[:, corner]
            total.index_add_(0, at, self.at(torch.arange(n_faces), barycentric))
            count.index_add_(0, at, torch.ones(n_faces, 1))
        return total / count.clamp(min=1)


def _multiplied(color: Tensor, tint: Tensor) -> Tensor:
    """Products of sRGB colours are taken in linear light; a white tint changes nothing."""
    if bool((tint == 1).all()):
        return color
    product = srgb_to_linear(color.numpy()) * srgb_to_linear(tint.numpy())
    return torch.from_numpy(linear_to_srgb(product)).to(color)
