"""Pictures of an exported mesh, as a viewer would show it without lights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from threestudio.ops.mesh_rasterization import interpolate, rasterize

if TYPE_CHECKING:
    import trimesh

SUPERSAMPLE = 2  # pixels along the side of a pixel that are averaged


@torch.no_grad()
def mesh_pictures(
    mesh: trimesh.Trimesh,  # with colours by vertex, world units
    mvp: Tensor,  # [V, 4, 4], world to clip space
    height: int,
    width: int,
    background: Tensor,  # [3] or [V, 3], sRGB in [0, 1]
) -> tuple[Tensor, Tensor]:
    """Colours and normals of V views: [V, H, W, 3] in [0, 1] each.

    A normal n is shown as (n + 1) / 2 on black. Views are drawn one at a time, which bounds the memory.
    """
    device = mvp.device
    positions = torch.from_numpy(np.asarray(mesh.vertices, dtype=np.float32)).to(device)
    faces = torch.from_numpy(np.asarray(mesh.faces, dtype=np.int64)).to(device)
    colors = torch.from_numpy(np.asarray(mesh.visual.vertex_colors, dtype=np.float32)[:, :3] / 255).to(device)
    normals = torch.from_numpy(np.array(mesh.vertex_normals, dtype=np.float32)).to(device)
    attributes = torch.cat([colors, normals, torch.ones_like(colors[:, :1])], 1)  # [N, 7]
    pictures, normal_maps = [], []
    for view, behind in zip(mvp, background.to(device).expand(len(mvp), 3)):
        fragments = rasterize(positions, faces, view[None], height * SUPERSAMPLE, width * SUPERSAMPLE)
        seen = interpolate(attributes, faces, fragments)  # [1, H, W, 7]
        seen = F.avg_pool2d(seen.permute(0, 3, 1, 2), SUPERSAMPLE)[0].permute(1, 2, 0)
        coverage = seen[..., 6:]
        pictures.append(seen[..., :3] + (1 - coverage) * behind)
        normal_maps.append((F.normalize(seen[..., 3:6], dim=-1) + 1) / 2 * coverage)
    return torch.stack(pictures).clamp(0, 1), torch.stack(normal_maps).clamp(0, 1)
