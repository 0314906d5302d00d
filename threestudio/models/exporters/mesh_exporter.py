"""The geometry's surface as a mesh file, with a baked texture or vertex colours. Runs on any device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List

import torch
from torch import Tensor

import threestudio
from threestudio.models.background.base import BaseBackground
from threestudio.models.exporters.base import Exporter, ExporterOutput
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.mesh import Mesh
from threestudio.ops.uv_rasterize import fill_nearest, rasterize_uv
from threestudio.utils.errors import UserError
from threestudio.utils.ops import chunk_batch

POINTS_AT_ONCE = 2**18
FORMATS = ("obj-mtl", "obj", "glb")
# What a material may export, and the key of the map that the saving functions take.
TEXTURES = {"albedo": "map_Kd", "metallic": "map_Pm", "roughness": "map_Pr", "bump": "map_Bump"}


@threestudio.register("mesh-exporter")
class MeshExporter(Exporter):
    @dataclass
    class Config(Exporter.Config):
        fmt: str = "obj-mtl"  # obj-mtl: OBJ, MTL and textures; obj: OBJ with vertex colours; glb: one binary file
        save_name: str = "model"  # file name without ending
        save_normal: bool = False  # write vertex normals
        save_uv: bool = True  # unwrap the mesh (obj-mtl, glb)
        save_texture: bool = True  # bake textures; without, or without save_uv, the mesh has vertex colours
        texture_size: int = 1024  # texels along a side
        texture_format: str = "jpg"  # file ending of textures
        xatlas_chart_options: dict = field(default_factory=dict)  # attributes of xatlas.ChartOptions
        xatlas_pack_options: dict = field(default_factory=dict)  # attributes of xatlas.PackOptions
        context_type: str = "gl"  # gl or cuda: kept for upstream's configs, no raster context is needed

    cfg: Config

    def configure(self, geometry: BaseGeometry, material: BaseMaterial, background: BaseBackground) -> None:
        super().configure(geometry, material, background)
        if self.cfg.fmt not in FORMATS:
            raise UserError(f"exporter.fmt: expected one of {', '.join(FORMATS)}, got {self.cfg.fmt!r}")
        if self.cfg.context_type not in ("gl", "cuda"):
            raise UserError(f"exporter.context_type: expected gl or cuda, got {self.cfg.context_type!r}")
        if self.cfg.texture_size < 1:
            raise UserError(f"exporter.texture_size: expected >= 1, got {self.cfg.texture_size}")

    @torch.no_grad()
    def __call__(self) -> List[ExporterOutput]:
        """Raises EmptyFieldError where the geometry has no surface."""
        mesh = self.geometry.isosurface()
        params: Dict[str, Any] = {"mesh": mesh, "save_normal": self.cfg.save_normal}
        if self.cfg.fmt != "obj" and self.cfg.save_uv and self.cfg.save_texture:
            params.update(save_uv=True, **self._bake(mesh))
        else:
            params.update(save_vertex_color=self._color_vertices(mesh))
        if self.cfg.fmt == "glb":
            # glTF's bump and metal maps are laid out in another way; the base colour is what it is given.
            params = {key: value for key, value in params.items() if key not in ("map_Pm", "map_Pr", "map_Bump")}
            return [ExporterOutput(f"{self.cfg.save_name}.glb", "glb", params)]
        params.update(save_mat="map_Kd" in params, map_format=self.cfg.texture_format)
        return [ExporterOutput(f"{self.cfg.save_name}.obj", "obj", params)]

    def _surface(self, points: Tensor) -> Dict[str, Tensor]:
        """What the material exports at points [N, 3] on the surface."""

        def query(points: Tensor) -> Dict[str, Tensor]:
            return self.material.export(points=points, **self.geometry.export(points=points))

        return chunk_batch(query, POINTS_AT_ONCE, points)

    def _color_vertices(self, mesh: Mesh) -> bool:
        """Sets vertex colours; False where the material exports no albedo."""
        surface = self._surface(mesh.v_pos)
        if "albedo" not in surface:
            threestudio.warn("the material exports no albedo: the mesh has no colours")
            return False
        mesh.set_vertex_color(surface["albedo"][:, :3].float().clamp(0, 1))
        return True

    def _bake(self, mesh: Mesh) -> Dict[str, Tensor]:
        """Textures [H, W, C] of the unwrapped mesh by the key of their map; gaps between charts are filled."""
        size = self.cfg.texture_size
        # Charts need a gap, or filtering mixes them; the gap counts texels of this size.
        pack = {"padding": 2, "resolution": size, **self.cfg.xatlas_pack_options}
        mesh.unwrap_uv(dict(self.cfg.xatlas_chart_options), pack)
        face, barycentric = rasterize_uv(mesh.v_tex, mesh.t_tex_idx, size, size)
        covered = face >= 0
        corners = mesh.v_pos[mesh.t_pos_idx[face[covered]]]  # [M, 3, 3]
        surface = self._surface((barycentric[covered][..., None] * corners).sum(1))
        if "albedo" not in surface:
            threestudio.warn("the material exports no albedo: the mesh has no base colour texture")
        maps = {}
        for name, key in TEXTURES.items():
            if name in surface:
                texture = surface[name].new_zeros(size, size, surface[name].shape[-1]).float()
                texture[covered] = surface[name].float()
                maps[key] = fill_nearest(texture, covered)
        return maps
