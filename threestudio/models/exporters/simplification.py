"""Fewer faces for the same surface: quadric edge collapse, or manifold3d's, where that opens a closed surface."""

from __future__ import annotations

import numpy as np
import torch

import threestudio
from threestudio.models.mesh import Mesh

# How far manifold3d may move the surface, as shares of the mesh's extent, from the least to the most.
TOLERANCES = np.geomspace(1e-4, 5e-2, 40)
STRIDE = 4  # tolerances between two that are tried before the ones between are

Arrays = tuple[np.ndarray, np.ndarray]  # vertices [V, 3], triangles [F, 3]


def simplify(mesh: Mesh, n_faces: int) -> Mesh:
    """A mesh of at most about n_faces faces (never fewer than 4), closed where the given one is and it can be kept so.

    Attributes (colours, texture coordinates) are not carried over. The mesh itself where it has no more faces.
    """
    if mesh.t_pos_idx.shape[0] <= max(n_faces, 4):
        return mesh
    v_pos, t_pos_idx = mesh.v_pos.detach().double().cpu().numpy(), mesh.t_pos_idx.cpu().numpy()

    def made(arrays: Arrays) -> Mesh:
        vertices, triangles = (torch.from_numpy(np.array(a)).to(mesh.v_pos.device) for a in arrays)
        return Mesh(vertices.to(mesh.v_pos.dtype), triangles.long())

    collapsed = _by_quadrics(v_pos, t_pos_idx, max(n_faces, 4))
    closed = is_watertight(mesh)
    if collapsed is not None and (not closed or is_watertight(made(collapsed))):
        return made(collapsed)
    kept_closed = _by_tolerance(v_pos, t_pos_idx, max(n_faces, 4)) if closed else None
    if kept_closed is not None:
        return made(kept_closed)
    if collapsed is None:
        threestudio.warn(f"the mesh cannot be simplified to {n_faces} faces: it keeps its {len(t_pos_idx)}")
        return mesh
    threestudio.warn(f"the mesh was closed; simplified to {len(collapsed[1])} faces it is not")
    return made(collapsed)


def _by_quadrics(v_pos: np.ndarray, t_pos_idx: np.ndarray, n_faces: int) -> Arrays | None:
    """Quadric edge collapse (Garland and Heckbert 1997): the best shape for a number of faces, but it may pinch a
    surface at an edge. None where it ends far from the number."""
    import fast_simplification

    points, faces = fast_simplification.simplify(v_pos, t_pos_idx, target_count=n_faces)
    return (points, faces) if 0 < len(faces) <= 1.1 * n_faces else None


def _by_tolerance(v_pos: np.ndarray, t_pos_idx: np.ndarray, n_faces: int) -> Arrays | None:
    """manifold3d's edge collapse, which keeps a manifold one, at the least tolerance that leaves no more than n_faces.
    None where the mesh is no manifold, or no tolerance is enough."""
    import manifold3d

    solid = manifold3d.Manifold(manifold3d.Mesh(v_pos.astype(np.float32), t_pos_idx.astype(np.uint32)))
    if solid.status() != manifold3d.Error.NoError:
        return None
    extent = float((v_pos.max(0) - v_pos.min(0)).max())

    def at(index: int) -> manifold3d.Manifold:
        return solid.simplify(extent * float(TOLERANCES[index]))

    enough = next((i for i in range(0, len(TOLERANCES), STRIDE) if 0 < at(i).num_tri() <= n_faces), None)
    if enough is None:
        return None
    index = next(i for i in range(max(0, enough - STRIDE + 1), enough + 1) if 0 < at(i).num_tri() <= n_faces)
    result = at(index).to_mesh()
    return result.vert_properties[:, :3], result.tri_verts.astype(np.int64)


def is_watertight(mesh: Mesh) -> bool:
    """Whether each edge is shared by exactly two triangles."""
    import trimesh

    solid = trimesh.Trimesh(mesh.v_pos.detach().cpu().numpy(), mesh.t_pos_idx.cpu().numpy(), process=False)
    return bool(solid.is_watertight)
