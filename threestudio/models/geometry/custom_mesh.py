"""A mesh from a file, which stays as it is, with trained features over space: for texturing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.models.geometry.base import BaseExplicitGeometry
from threestudio.models.geometry.features import EncodedFeatures, FeatureConfig
from threestudio.models.geometry.mesh_start import fit_to_mesh
from threestudio.models.geometry.shape_init import ShapeInitConfig, check_shape_init, load_mesh
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.mesh import Mesh
from threestudio.utils.errors import UserError


@threestudio.register("custom-mesh")
class CustomMesh(EncodedFeatures, BaseExplicitGeometry):
    """Vertices, faces and the file's texture coordinates are buffers: a checkpoint holds the mesh of its training,
    whatever its file is by now."""

    @dataclass
    class Config(BaseExplicitGeometry.Config, FeatureConfig, ShapeInitConfig):
        shape_init: str = ""  # mesh:<file>, required; shape_init_params: largest coordinate, world units

    cfg: Config

    def configure(self) -> None:
        super().configure()
        cfg = self.cfg
        if not cfg.shape_init.startswith("mesh:"):
            raise UserError(f"geometry.shape_init: custom-mesh expects mesh:<file>, got {cfg.shape_init!r}")
        check_shape_init(cfg)
        mesh = load_mesh(cfg, cfg.radius)
        self.register_buffer("v_buffer", mesh.v_pos)  # [Nv, 3]
        self.register_buffer("t_buffer", mesh.t_pos_idx)  # [Nf, 3]
        self._keep_uv(mesh)
        self._mesh: Mesh | None = None
        self.make_features()

    def _keep_uv(self, mesh: Mesh) -> None:
        """Its texture coordinates [Nt, 2] and their triangles [Nf, 3]; no rows where it has none of its own."""
        own = mesh.has_own_uv
        v_tex = mesh.v_tex if own else torch.zeros(0, 2)
        t_tex = mesh.t_tex_idx if own else torch.zeros(0, 3, dtype=torch.long)
        device = self.v_buffer.device
        self.register_buffer("v_tex_buffer", v_tex.to(device))
        self.register_buffer("t_tex_buffer", t_tex.to(device))

    def isosurface(self) -> Mesh:
        """The mesh, one object for all calls, so that what is derived from it is made once."""
        if self._mesh is None or self._mesh.v_pos is not self.v_buffer:
            self._mesh = Mesh(self.v_buffer, self.t_buffer)
            if len(self.t_tex_buffer):
                self._mesh.set_uv(self.v_tex_buffer, self.t_tex_buffer)
        return self._mesh

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        given = dict(state_dict)
        if prefix + "t_buffer" in given:  # a checkpoint from before these were kept has none
            given.setdefault(prefix + "v_tex_buffer", self.v_tex_buffer[:0])
            given.setdefault(prefix + "t_tex_buffer", self.t_tex_buffer[:0])
        for name in ("v_buffer", "t_buffer", "v_tex_buffer", "t_tex_buffer"):
            if prefix + name in given:
                setattr(self, name, given[prefix + name].to(self.v_buffer.device, copy=True))
        super()._load_from_state_dict(given, prefix, *args)

    def forward(self, points: Tensor, output_normal: bool = False) -> dict[str, Tensor]:
        """points [..., 3] in world units -> features [..., n_feature_dims]; normals are the mesh's."""
        return self.export(points)

    def init_from_mesh(self, mesh: Mesh, material: BaseMaterial, steps: int) -> None:
        """Takes the mesh in place of ``shape_init``'s and fits the features to its colours."""
        self.v_buffer, self.t_buffer = mesh.v_pos.to(self.v_buffer), mesh.t_pos_idx.to(self.t_buffer)
        self._keep_uv(mesh)
        if self.has_features:
            fit_to_mesh(self, material, mesh, self.cfg.radius, steps)
