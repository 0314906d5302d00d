"""The geometry as a file: a mesh with baked textures or vertex colours, or what a plugin writes. Runs on any device."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.models.background.base import BaseBackground
from threestudio.models.exporters.base import Exporter, ExporterOutput
from threestudio.models.exporters.formats import export_format_names, find_export_format
from threestudio.models.exporters.simplification import is_watertight, simplify
from threestudio.models.exporters.texture_baking import (
    DenseSurface,
    Texels,
    atlas_tangents,
    keeps_own_uv,
    tangent_space_normals,
    texels_of,
)
from threestudio.models.geometry.base import BaseGeometry, BaseImplicitGeometry
from threestudio.models.isosurface import EmptyFieldError
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.mesh import Mesh, atlas_options, face_components
from threestudio.utils.errors import UserError, with_suggestion
from threestudio.utils.glb_files import world_to_gltf
from threestudio.utils.memory import check_memory
from threestudio.utils.ops import chunk_batch

POINTS_AT_ONCE = 2**18
MESH_FORMATS = ("obj-mtl", "obj", "glb", "ply", "stl")
TEXTURED = ("obj-mtl", "glb")
UP_AXES = ("auto", "y", "z")
PICTURE_FORMATS = ("jpg", "jpeg", "png", "webp", "bmp", "tga", "tif", "tiff")
# What a material may export, and the key of the map that the saving functions take.
TEXTURES = {"albedo": "map_Kd", "metallic": "map_Pm", "roughness": "map_Pr", "bump": "map_Bump"}
# Graphics cards take no larger texture.
LARGEST_TEXTURE = 16384
# Peak memory of a bake by texel: index, barycentric coordinates, point, normal, maps and their filling.
BYTES_BY_TEXEL = 160


@threestudio.register("mesh-exporter")
class MeshExporter(Exporter):
    @dataclass
    class Config(Exporter.Config):
        # obj-mtl: OBJ, MTL and textures; glb: one file with its textures; obj, ply: vertex colours; stl: shape alone;
        # others as plugins register them (exporters/formats.py)
        fmt: str = "obj-mtl"
        save_name: str = "model"  # file name without ending
        save_normal: bool = False  # write vertex normals (not in stl)
        save_uv: bool = True  # unwrap the mesh (obj-mtl, glb)
        # whether a mesh with texture coordinates of its own (custom-mesh, of a file that has some) keeps them, so that
        # its textures fit that file: null where they can hold a picture of it, true also where that is poor; never
        # where it is simplified
        keep_uv: bool | None = None
        save_texture: bool = True  # bake textures; without, or without save_uv, the mesh has vertex colours
        # bake what the mesh's own normals miss as a tangent-space normal map (obj-mtl, glb);
        # null: in a glb whose mesh is simplified, and where the material bends the normals
        save_normal_map: bool | None = None
        simplify_to: int = 0  # faces to simplify to, colours are baked after; 0: all that there are
        up_axis: str = "auto"  # y: front +z, as glTF has it; z: front +x, as the world has it; auto: y in glb, else z
        texture_size: int = 1024  # texels along a side
        texture_format: str = "jpg"  # file ending of textures (obj-mtl; a glb's are PNG)
        xatlas_chart_options: dict = field(default_factory=dict)  # attributes of xatlas.ChartOptions
        xatlas_pack_options: dict = field(default_factory=dict)  # attributes of xatlas.PackOptions
        context_type: str = "gl"  # gl or cuda: kept for upstream's configs, no raster context is needed

    cfg: Config

    def configure(self, geometry: BaseGeometry, material: BaseMaterial, background: BaseBackground) -> None:
        super().configure(geometry, material, background)
        cfg = self.cfg
        self._format = None if cfg.fmt in MESH_FORMATS else find_export_format(cfg.fmt)
        formats = (*MESH_FORMATS, *export_format_names())
        for key, allowed in (
            ("fmt", formats),
            ("up_axis", UP_AXES),
            ("texture_format", PICTURE_FORMATS),
            ("context_type", ("gl", "cuda")),
        ):
            value = getattr(cfg, key)
            if (value.lower() if key == "texture_format" else value) not in allowed:
                message = f"exporter.{key}: expected one of {', '.join(allowed)}, got {value!r}"
                raise UserError(with_suggestion(message, str(value), allowed))
        if cfg.fmt == "glb" and cfg.up_axis == "z":
            raise UserError("exporter.up_axis: expected auto or y, got 'z': glTF files have y up")
        if not 1 <= cfg.texture_size <= LARGEST_TEXTURE:
            raise UserError(f"exporter.texture_size: expected 1 to {LARGEST_TEXTURE}, got {cfg.texture_size}")
        if cfg.simplify_to != 0 and cfg.simplify_to < 4:
            raise UserError(f"exporter.simplify_to: expected 0 (off) or at least 4 faces, got {cfg.simplify_to}")
        if cfg.xatlas_chart_options or cfg.xatlas_pack_options:
            atlas_options(dict(cfg.xatlas_chart_options), dict(cfg.xatlas_pack_options))
        if self._format is not None:
            self._format.check(geometry)

    @property
    def textured(self) -> bool:
        return self.cfg.fmt in TEXTURED and self.cfg.save_uv and self.cfg.save_texture

    @torch.no_grad()
    def __call__(self) -> list[ExporterOutput]:
        """Raises EmptyFieldError where the geometry has no surface, UserError where it is no sound mesh."""
        fmt, name = self.cfg.fmt, self.cfg.save_name
        if self._format is not None:
            write = partial(self._format.write, self.geometry)
            return [ExporterOutput(f"{name}{self._format.ending}", "written", {"write": write})]
        if self.textured:
            size = self.cfg.texture_size
            check_memory(BYTES_BY_TEXEL * size**2, self._device(), "exporter.texture_size", size)
        dense = _checked(self._isosurface())
        mesh = simplify(dense, self.cfg.simplify_to) if self.cfg.simplify_to else dense
        surface = _Surface(self.geometry, self.material, DenseSurface(dense) if mesh is not dense else None, dense)
        params: dict[str, Any] = {"mesh": mesh}
        if fmt != "stl":
            params["save_normal"] = self.cfg.save_normal
            params.update(self._appearance(mesh, surface))
        summary = mesh_summary(mesh)
        params["mesh"] = self._turned(mesh)
        if fmt == "obj-mtl":
            params.update(save_mat="map_Kd" in params, map_format=self.cfg.texture_format)
            params.pop("v_tng", None)  # OBJ has no tangents: viewers derive them from the texture coordinates
        ending = "obj" if fmt == "obj-mtl" else fmt
        return [ExporterOutput(f"{name}.{ending}", ending, params, summary)]

    def _isosurface(self) -> Mesh:
        try:
            return self.geometry.isosurface()
        except UserError:
            raise
        except ValueError as error:  # how plugins' geometries say that there is none
            raise UserError(f"export: {error}") from error

    def _device(self) -> torch.device:
        for tensor in (*self.geometry.parameters(), *self.geometry.buffers()):
            return tensor.device
        return torch.device("cpu")

    def _appearance(self, mesh: Mesh, surface: _Surface) -> dict[str, Any]:
        """What the saving functions take beside the mesh: maps, or that the vertices have colours."""
        if not self.textured:
            return {"save_vertex_color": _color_vertices(mesh, surface)}
        size = self.cfg.texture_size
        if not keeps_own_uv(mesh, self.cfg.keep_uv):
            # Charts need a gap, or filtering mixes them; the gap counts texels of this size.
            pack = {"padding": 2, "resolution": size, **self.cfg.xatlas_pack_options}
            mesh.unwrap_uv(dict(self.cfg.xatlas_chart_options), pack)
        texels = texels_of(mesh, size)
        points = texels.interpolate(mesh.v_pos, mesh.t_pos_idx)
        maps: dict[str, Any] = {"save_uv": True}
        exported = surface.material_at(points, F.normalize(texels.interpolate(mesh.v_nrm, mesh.t_pos_idx), dim=-1))
        if "albedo" not in exported:
            threestudio.warn("the material exports no albedo: the mesh has no base colour texture")
        for channel, key in TEXTURES.items():
            # A material's bump map is laid out in another way than glTF's normal map.
            if channel in exported and not (channel == "bump" and self.cfg.fmt == "glb"):
                maps[key] = texels.image(exported[channel])
        if self._wants_normal_map(surface, "shading_normal" in exported):
            normal = exported.get("shading_normal")
            maps.update(_normal_map(mesh, texels, surface.normals_at(points) if normal is None else normal))
            maps["save_normal"] = True  # a normal map bends the mesh's own normals
        return maps

    def _wants_normal_map(self, surface: _Surface, bent: bool) -> bool:
        """`bent`: whether the material bends the normals."""
        if self.cfg.save_normal_map is None:
            return bent or (self.cfg.fmt == "glb" and surface.dense is not None)
        return self.cfg.save_normal_map

    def _turned(self, mesh: Mesh) -> Mesh:
        """The mesh in the file's axes; write_glb turns its meshes itself."""
        if self.cfg.up_axis != "y" or self.cfg.fmt == "glb":
            return mesh
        turned = Mesh(world_to_gltf(mesh.v_pos), mesh.t_pos_idx)
        if mesh.v_rgb is not None:
            turned.set_vertex_color(mesh.v_rgb)
        if self.textured:
            turned.set_uv(mesh.v_tex, mesh.t_tex_idx)
        return turned


class _Surface:
    """What the scene shows at points of its surface, or beside it where the mesh was simplified."""

    def __init__(self, geometry: BaseGeometry, material: BaseMaterial, dense: DenseSurface | None, full: Mesh) -> None:
        self.geometry, self.material, self.dense, self._full = geometry, material, dense, full

    def material_at(self, points: Tensor, normal: Tensor) -> dict[str, Tensor]:
        """points and the mesh's unit normals there, [N, 3] each -> the channels [N, C] that the material exports."""
        if self.material.requires_normal and self.dense is not None:
            normal = self.normals_at(points)
        if self.dense is not None:
            points, _ = self.dense.project(points)

        def query(points: Tensor, normal: Tensor) -> dict[str, Tensor]:
            shaded = {"shading_normal": normal} if self.material.requires_normal else {}
            return self.material.export(points=points, **shaded, **self.geometry.export(points=points))

        return chunk_batch(query, POINTS_AT_ONCE, points, normal)

    def normals_at(self, points: Tensor) -> Tensor:
        """points [N, 3] -> unit normals [N, 3]: the field's, where there is a field that has some."""
        points, normal = (self.dense or DenseSurface(self._full)).project(points)
        if not isinstance(self.geometry, BaseImplicitGeometry):
            return normal

        def query(points: Tensor) -> dict[str, Tensor]:
            out = self.geometry(points, output_normal=True)
            return {key: out[key] for key in ("normal",) if key in out}

        field_normal = chunk_batch(query, POINTS_AT_ONCE, points).get("normal")
        if field_normal is None:
            return normal
        # A flat spot of the field has no direction, and one that points inwards is noise.
        outwards = (field_normal * normal).sum(-1, keepdim=True) > 0
        return torch.where(outwards, field_normal, normal)


def _checked(mesh: Mesh) -> Mesh:
    """A copy of its shape without gradients; raises where it is empty or broken."""
    if mesh.t_pos_idx.shape[0] == 0:
        raise EmptyFieldError("export: the geometry's surface has no triangles")
    broken = int((~torch.isfinite(mesh.v_pos)).any(-1).sum())
    if broken:
        raise UserError(f"export: {broken} of the surface's {mesh.v_pos.shape[0]} vertices are not finite")
    copy = Mesh(mesh.v_pos.detach().float(), mesh.t_pos_idx.detach().long())
    if mesh.has_own_uv:
        copy.set_uv(mesh.v_tex.detach().float(), mesh.t_tex_idx.detach().long())
    return copy


def _color_vertices(mesh: Mesh, surface: _Surface) -> bool:
    """Sets vertex colours; False where the material exports no albedo."""
    exported = surface.material_at(mesh.v_pos, mesh.v_nrm)
    if "albedo" not in exported:
        threestudio.warn("the material exports no albedo: the mesh has no colours")
        return False
    mesh.set_vertex_color(exported["albedo"][:, :3].float().clamp(0, 1))
    return True


def _normal_map(mesh: Mesh, texels: Texels, normal: Tensor) -> dict[str, Tensor]:
    """normal [M, 3]: unit, of the world, at the texels."""
    tangents = atlas_tangents(mesh)
    return {
        "map_Bump": texels.image(tangent_space_normals(texels, mesh, tangents, normal)),
        "v_tng": tangents,
    }


def mesh_summary(mesh: Mesh) -> str:
    """Faces, vertices, whether it is closed, and pieces, in words."""
    n_faces, n_vertices = mesh.t_pos_idx.shape[0], mesh.v_pos.shape[0]
    n_components = int(face_components(mesh.t_pos_idx, n_vertices).max()) + 1
    closed = "watertight" if is_watertight(mesh) else "NOT watertight"
    plural = "" if n_components == 1 else "s"
    return f"{n_faces:,} faces, {n_vertices:,} vertices, {closed}, {n_components} component{plural}"
