"""From a surface to the texels of its atlas: which point each texel shows, and normals in tangent space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.models.mesh import Mesh, vertex_tangents
from threestudio.ops.uv_rasterize import fill_nearest, rasterize_uv

BEYOND = 1.0e-3  # of texture coordinates beyond [0, 1], as rounding leaves them
OVERLAP_SIZE = 1024  # texels along a side of the picture that tells whether charts overlap
OVERLAP = 0.02  # share of their area from which on that is said
MOST_OVERLAP = 0.6  # share up to which they are kept: halves that mirror one another share one half
LEAST_COVERED = 0.02  # share of the picture: coordinates that point into a palette have next to no area


@dataclass
class Texels:
    """The M texels of an atlas that lie in a triangle."""

    covered: Tensor  # [H, W] bool
    face: Tensor  # [M]
    barycentric: Tensor  # [M, 3]

    def interpolate(self, values: Tensor, corners: Tensor) -> Tensor:
        """values [N, C], corners [F, 3] (indices into them) -> [M, C]."""
        return (self.barycentric[..., None] * values[corners[self.face]]).sum(1)

    def image(self, values: Tensor) -> Tensor:
        """values [M, C] -> [H, W, C]; texels between the charts take their nearest one's."""
        picture = values.new_zeros(*self.covered.shape, values.shape[-1]).float()
        picture[self.covered] = values.float()
        return fill_nearest(picture, self.covered)


def texels_of(mesh: Mesh, size: int) -> Texels:
    """The texels of an unwrapped mesh's atlas of size x size."""
    face, barycentric = rasterize_uv(mesh.v_tex, mesh.t_tex_idx, size, size)
    covered = face >= 0
    return Texels(covered, face[covered], barycentric[covered])


def keeps_own_uv(mesh: Mesh, asked: bool | None) -> bool:
    """Whether a mesh's own texture coordinates are kept for its textures; says why not, or what is lost.

    `asked`: None where they can hold a picture of it, True where that is poor too, False never. Such that leave the
    picture, or have no area, cannot be kept.
    """
    if asked is False or not mesh.has_own_uv:
        return False
    v_tex, own = mesh.v_tex, "the mesh's own texture coordinates"
    if bool((v_tex < -BEYOND).any()) or bool((v_tex > 1.0 + BEYOND).any()):
        threestudio.warn(f"{own} leave the picture (tiles): it gets others")
        return False
    a, b, c = v_tex[mesh.t_tex_idx].double().unbind(1)
    # share of the picture, counted as often as it is used, and once
    charts = float(torch.linalg.det(torch.stack([b - a, c - a], -1)).abs().sum()) / 2
    covered = float(texels_of(mesh, OVERLAP_SIZE).covered.double().mean())
    shared = 1.0 - covered / charts if charts > 0.0 else 0.0
    poor = shared > MOST_OVERLAP or covered < LEAST_COVERED
    kept = covered > 0.0 and (bool(asked) or not poor)
    if shared > OVERLAP:
        lost = "places that share a texel get the colour of one of them" if kept else "it gets others"
        threestudio.warn(f"{own} lie over one another ({shared:.0%} of their area): {lost}")
    elif poor:
        threestudio.warn(f"{own} cover {covered:.2%} of the picture: {'few texels' if kept else 'it gets others'}")
    return kept


class DenseSurface:
    """A fine mesh, to look up what a coarser one that stands for it should show."""

    def __init__(self, mesh: Mesh) -> None:
        from scipy.spatial import cKDTree

        self.v_pos, self.v_nrm = mesh.v_pos.detach(), mesh.v_nrm.detach()
        self._tree = cKDTree(self.v_pos.cpu().numpy())

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """points [N, 3] -> the points of the surface beside them and its unit normals there, [N, 3] each.

        To first order: the foot on the tangent plane of the nearest vertex; normals of the three nearest vertices,
        weighted by nearness.
        """
        distance, index = (torch.from_numpy(x).to(points.device) for x in self._tree.query(points.cpu().numpy(), k=3))
        nearest = index[:, 0]
        normal = self.v_nrm[nearest]
        offset = ((points - self.v_pos[nearest]) * normal).sum(-1, keepdim=True)
        weight = (1.0 / distance.clamp(min=1e-9)).to(points)
        blended = (self.v_nrm[index] * weight[..., None]).sum(1)
        return points - offset * normal, F.normalize(blended, dim=-1)


def atlas_tangents(mesh: Mesh) -> Tensor:
    """Tangents [Nt, 4] by texture coordinate, as glTF's TANGENT: unit, along u, and the sign of the bitangent.

    The bitangent is sign * cross(normal, tangent) and points to the top of the image (glTF 2.0, section 3.7.2.1).
    Each texture coordinate must belong to one vertex, as xatlas makes them.
    """
    v_tex, t_tex_idx = mesh.v_tex, mesh.t_tex_idx
    vertex = vertex_of_texture_coordinate(mesh)
    v_pos, v_nrm = mesh.v_pos[vertex], mesh.v_nrm[vertex]
    tangent = vertex_tangents(v_pos, t_tex_idx, v_tex, t_tex_idx, v_nrm)
    # Charts of no area have no direction along u: any one in the plane will do.
    axis = F.one_hot(v_nrm.abs().argmin(-1), 3).to(v_nrm)
    spare = F.normalize(axis - (axis * v_nrm).sum(-1, keepdim=True) * v_nrm, dim=-1)
    tangent = torch.where(tangent.norm(dim=-1, keepdim=True) > 0.5, tangent, spare)

    a, b, c = v_tex[t_tex_idx].unbind(1)
    (u1, v1), (u2, v2) = (b - a).unbind(-1), (c - a).unbind(-1)
    area = u1 * v2 - v1 * u2  # v grows downwards: positive where the image shows the triangle mirrored
    total = torch.zeros_like(v_tex[:, 0])
    for corner in range(3):
        total = total.index_add(0, t_tex_idx[:, corner], area)
    sign = torch.where(total > 0, -1.0, 1.0).to(tangent)
    return torch.cat([tangent, sign[:, None]], -1)


def vertex_of_texture_coordinate(mesh: Mesh) -> Tensor:
    """Index of the vertex [Nt] that each texture coordinate belongs to."""
    vertex = torch.zeros(mesh.v_tex.shape[0], dtype=torch.long, device=mesh.t_pos_idx.device)
    vertex[mesh.t_tex_idx.reshape(-1)] = mesh.t_pos_idx.reshape(-1)
    return vertex


def tangent_space_normals(texels: Texels, mesh: Mesh, tangents: Tensor, normal: Tensor) -> Tensor:
    """Unit normals [M, 3] at the texels as colours [M, 3] in [0, 1]: x along u, y to the image's top, z outwards.

    tangents: [Nt, 4] of atlas_tangents; where a normal points below the mesh's own surface it is laid flat.
    """
    up = F.normalize(texels.interpolate(mesh.v_nrm, mesh.t_pos_idx), dim=-1)
    tangent = texels.interpolate(tangents[:, :3], mesh.t_tex_idx)
    tangent = F.normalize(tangent - (tangent * up).sum(-1, keepdim=True) * up, dim=-1)
    sign = tangents[mesh.t_tex_idx[texels.face, 0], 3:]
    bitangent = sign * torch.linalg.cross(up, tangent, dim=-1)
    local = torch.stack([(normal * axis).sum(-1) for axis in (tangent, bitangent, up)], -1)
    local = torch.cat([local[:, :2], local[:, 2:].clamp(min=1e-3)], -1)
    return F.normalize(local, dim=-1) * 0.5 + 0.5
