"""Renders the geometry's isosurface as a mesh: rasterized, shaded where it is seen, antialiased at its outline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.models.background.base import BaseBackground
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.mesh import Mesh
from threestudio.models.renderers.base import Rasterizer
from threestudio.models.renderers.volume_parts import background_colors
from threestudio.ops.mesh_antialias import antialias
from threestudio.ops.mesh_rasterization import Fragments, interpolate, invert_camera, rasterize
from threestudio.ops.mesh_rasterization.reference import pixel_centre
from threestudio.utils.rasterize import check_context_type


@threestudio.register("nvdiff-rasterizer")
class NVDiffRasterizer(Rasterizer):
    @dataclass
    class Config(Rasterizer.Config):
        context_type: str = "gl"  # gl or cuda: upstream's choice of graphics context; both mean the same here

    cfg: Config

    def configure(self, geometry: BaseGeometry, material: BaseMaterial, background: BaseBackground) -> None:
        super().configure(geometry, material, background)
        check_context_type(self.cfg.context_type)

    def forward(
        self,
        mvp_mtx: Tensor,
        camera_positions: Tensor,
        light_positions: Tensor,
        height: int,
        width: int,
        render_rgb: bool = True,
        rays_d: Tensor | None = None,
        bg_color: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Images of B cameras.

        Args:
            mvp_mtx: [B, 4, 4]; camera_positions, light_positions: [B, 3]; height, width: pixels.
            render_rgb: whether colours are asked of the material and the background.
            rays_d: [B, H, W, 3], of any length, for the background; made from mvp_mtx where there are none.
            bg_color: [B, C] or [B, H, W, C], in place of the background's colours.
            kwargs: the rest of the batch, handed on to the material.
        Returns:
            mesh; opacity [B, H, W, 1] and comp_normal [B, H, W, 3] in [0, 1], black where there is nothing;
            with render_rgb also comp_rgb and comp_rgb_bg [B, H, W, C]. All images but comp_rgb_bg are antialiased.
        """
        mesh = self.geometry.isosurface()
        fragments = rasterize(mesh.v_pos, mesh.t_pos_idx, mvp_mtx, height, width)
        mask = (fragments.face >= 0).to(mesh.v_pos)[..., None]
        # What is asked of this mesh from here on needs no check of its values: rasterize has made it.
        normal = F.normalize(interpolate(mesh.v_nrm, mesh.t_pos_idx, fragments, check_values=False), dim=-1)
        images = {"opacity": mask, "comp_normal": (normal + 1.0) / 2.0 * mask}
        out: dict[str, Any] = {"mesh": mesh}
        if render_rgb:
            dirs = view_directions(mvp_mtx, height, width) if rays_d is None else F.normalize(rays_d, dim=-1)
            background = background_colors(self.background, dirs, bg_color).to(mask)
            images["comp_rgb"] = self._shade(
                mesh, fragments, normal, background, camera_positions, light_positions, kwargs
            )
            out["comp_rgb_bg"] = background
        # One pass for all images: finding the outline costs more than blending a channel.
        channels = [image.shape[-1] for image in images.values()]
        smooth = antialias(
            torch.cat(list(images.values()), -1), fragments, mesh.v_pos, mesh.t_pos_idx, mvp_mtx,
            edges=mesh.edge_faces, check_values=False,
        )  # fmt: skip
        out.update(zip(images, smooth.split(channels, -1)))
        return out

    def _shade(
        self,
        mesh: Mesh,
        fragments: Fragments,
        normal: Tensor,
        background: Tensor,
        camera_positions: Tensor,
        light_positions: Tensor,
        options: dict[str, Any],
    ) -> Tensor:
        """The background [B, H, W, C] with the surface's colours in the pixels that see it."""
        batch, height, width = fragments.face.shape
        covered = (fragments.face.view(-1) >= 0).nonzero()[:, 0]
        if covered.shape[0] == 0:
            return background

        def seen(image: Tensor) -> Tensor:
            return image.reshape(batch * height * width, -1).index_select(0, covered)

        view = covered // (height * width)
        positions = seen(interpolate(mesh.v_pos, mesh.t_pos_idx, fragments, check_values=False))
        extra: dict[str, Tensor] = {}
        if self.material.requires_normal:
            extra["shading_normal"] = seen(normal)
        if self.material.requires_tangent:
            extra["tangent"] = F.normalize(seen(interpolate(mesh.v_tng, mesh.t_pos_idx, fragments)), dim=-1)
        features = self.geometry(positions, output_normal=False)
        colors = self.material(
            viewdirs=F.normalize(positions - camera_positions[view], dim=-1),
            positions=positions,
            light_positions=light_positions[view],
            **extra,
            **features,
            **options,
        )
        flat = background.reshape(batch * height * width, -1)
        return flat.index_copy(0, covered, colors.to(flat)).view_as(background)


def view_directions(mvp_mtx: Tensor, height: int, width: int) -> Tensor:
    """Unit directions of the rays through pixels' centres [B, H, W, 3]."""
    y, x = torch.meshgrid(
        pixel_centre(torch.arange(height, device=mvp_mtx.device), height, mvp_mtx.double()),
        pixel_centre(torch.arange(width, device=mvp_mtx.device), width, mvp_mtx.double()),
        indexing="ij",
    )
    ends = []
    for z in (-1.0, 1.0):
        screen = torch.stack([x, y, torch.full_like(x, z), torch.ones_like(x)], -1).view(1, -1, 4)
        world = screen @ invert_camera(mvp_mtx).transpose(1, 2)
        ends.append(world[..., :3] / world[..., 3:])
    return F.normalize(ends[1] - ends[0], dim=-1).view(-1, height, width, 3).to(mvp_mtx.dtype)
