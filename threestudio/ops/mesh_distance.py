"""Signed distance to a triangle mesh (Warp's BVH; sign from the winding number)."""

from __future__ import annotations

import torch
from torch import Tensor

from threestudio.ops.warp_runtime import as_array, launch, wp


@wp.kernel
def _signed_distance_kernel(
    mesh: wp.uint64, points: wp.array(dtype=wp.vec3), farthest: float, distance: wp.array(dtype=float)
):
    i = wp.tid()
    query = wp.mesh_query_point_sign_winding_number(mesh, points[i], farthest)
    if query.result:
        nearest = wp.mesh_eval_position(mesh, query.face, query.u, query.v)
        distance[i] = query.sign * wp.length(points[i] - nearest)
    else:
        distance[i] = farthest


class MeshDistance:
    """Signed distance to a mesh, negative inside.

    Inside is where the generalized winding number (Jacobson et al. 2013) exceeds one half, so a mesh with small
    holes, or whose parts overlap, has an inside too.

    Args:
        v_pos: [Nv, 3]; t_pos_idx: [Nf, 3], counter-clockwise seen from outside. They set the device of the queries.
    """

    def __init__(self, v_pos: Tensor, t_pos_idx: Tensor) -> None:
        self.device = v_pos.device
        # Warp reads these buffers in place: they are kept alive here.
        self._v_pos = v_pos.detach().float().contiguous()
        self._corners = t_pos_idx.to(torch.int32).reshape(-1).contiguous()
        self._mesh = wp.Mesh(as_array(self._v_pos, wp.vec3), as_array(self._corners), support_winding_number=True)

    @torch.no_grad()
    def __call__(self, points: Tensor) -> Tensor:
        """points [..., 3] -> distance [..., 1] in the mesh's units; carries no gradient."""
        flat = points.detach().to(self.device, torch.float32).reshape(-1, 3).contiguous()
        distance = torch.empty(flat.shape[0], device=self.device)
        if flat.shape[0] > 0:
            span = torch.cat([flat, self._v_pos]).aminmax(dim=0)
            farthest = 2.0 * float((span.max - span.min).norm()) + 1e-6
            arguments = [self._mesh.id, flat, farthest, distance]
            launch(_signed_distance_kernel, [flat.shape[0]], arguments, self.device)
        return distance.reshape(*points.shape[:-1], 1).to(points.device)
