"""Fewer faces for the same surface: quadric edge collapse by the fast-simplification library."""

from __future__ import annotations

from itertools import product

import torch

import threestudio
from threestudio.models.mesh import Mesh

# How fast the allowed error grows, and which share of the faces asked for: a collapse that pinches the surface at an
# edge, one of thousands, is not made again when the order of the collapses is another.
AGGRESSIVENESS = (7.0, 5.0, 4.0, 3.0)
SHARES = (1.0, 0.97, 0.94, 0.9)


def simplify(mesh: Mesh, n_faces: int) -> Mesh:
    """A mesh of about n_faces faces (never fewer than 4), closed where the given one is and it can be kept so.

    Attributes (colours, texture coordinates) are not carried over. The mesh itself where it has no more faces.
    """
    import fast_simplification

    if mesh.t_pos_idx.shape[0] <= max(n_faces, 4):
        return mesh
    v_pos, t_pos_idx = mesh.v_pos.detach().double().cpu().numpy(), mesh.t_pos_idx.cpu().numpy()
    device, closed, best = mesh.v_pos.device, is_watertight(mesh), None
    for share, aggressiveness in product(SHARES, AGGRESSIVENESS):
        target = max(int(share * n_faces), 4)
        points, faces = fast_simplification.simplify(v_pos, t_pos_idx, target_count=target, agg=aggressiveness)
        if not 0 < len(faces) <= 1.1 * max(n_faces, 4):
            continue
        simple = Mesh(torch.from_numpy(points).to(device, mesh.v_pos.dtype), torch.from_numpy(faces).long().to(device))
        if not closed or is_watertight(simple):
            return simple
        best = best or simple
    if best is None:
        threestudio.warn(f"the mesh cannot be simplified to {n_faces} faces: it keeps its {len(t_pos_idx)}")
        return mesh
    threestudio.warn(f"the mesh was closed; simplified to {best.t_pos_idx.shape[0]} faces it is not")
    return best


def is_watertight(mesh: Mesh) -> bool:
    """Whether each edge is shared by exactly two triangles."""
    import trimesh

    solid = trimesh.Trimesh(mesh.v_pos.detach().cpu().numpy(), mesh.t_pos_idx.cpu().numpy(), process=False)
    return bool(solid.is_watertight)
