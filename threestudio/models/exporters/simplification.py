"""Fewer faces for the same surface: quadric edge collapse by the fast-simplification library."""

from __future__ import annotations

import torch

import threestudio
from threestudio.models.mesh import Mesh

# How fast the allowed error grows; slower passes keep thin parts from folding onto themselves.
AGGRESSIVENESS = (7.0, 4.0, 2.0)


def simplify(mesh: Mesh, n_faces: int) -> Mesh:
    """A mesh of about n_faces faces (never fewer than 4), closed where the given one is and it can be kept so.

    Attributes (colours, texture coordinates) are not carried over. The mesh itself where it has no more faces.
    """
    import fast_simplification

    if mesh.t_pos_idx.shape[0] <= max(n_faces, 4):
        return mesh
    v_pos, t_pos_idx = mesh.v_pos.detach().double().cpu().numpy(), mesh.t_pos_idx.cpu().numpy()
    closed = is_watertight(mesh)
    best = None
    for aggressiveness in AGGRESSIVENESS:
        points, faces = fast_simplification.simplify(
            v_pos, t_pos_idx, target_count=max(n_faces, 4), agg=aggressiveness
        )
        device = mesh.v_pos.device
        simple = Mesh(torch.from_numpy(points).to(device, mesh.v_pos.dtype), torch.from_numpy(faces).long().to(device))
        if len(faces) > 0 and (not closed or is_watertight(simple)):
            return simple
        best = simple if best is None and len(faces) > 0 else best
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
