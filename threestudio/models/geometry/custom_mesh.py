"""A mesh from a file, which stays as it is, with trained features over space: for texturing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

import threestudio
from threestudio.models.geometry.base import BaseExplicitGeometry, contract_to_unisphere
from threestudio.models.geometry.implicit_volume import hash_grid_defaults, mlp_defaults
from threestudio.models.geometry.mesh_start import fit_to_mesh
from threestudio.models.geometry.shape_init import check_shape_init, load_mesh
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.mesh import Mesh
from threestudio.models.networks import get_encoding, get_mlp
from threestudio.utils.errors import UserError


@threestudio.register("custom-mesh")
class CustomMesh(BaseExplicitGeometry):
    """Vertices and faces are buffers: a checkpoint holds the mesh of its training, whatever its file is by now."""

    @dataclass
    class Config(BaseExplicitGeometry.Config):
        n_input_dims: int = 3  # of a point
        n_feature_dims: int = 3  # features that the material sees; 0: none
        pos_encoding_config: dict = field(default_factory=hash_grid_defaults)
        mlp_network_config: dict = field(default_factory=mlp_defaults)
        shape_init: str = ""  # mesh:<file>, required
        shape_init_params: Any | None = None  # size of the mesh (largest coordinate, world units), null: as in its file
        shape_init_mesh_up: str = "+z"  # the mesh file's axis that points up
        shape_init_mesh_front: str = "+x"  # the mesh file's axis that points to the front

    cfg: Config

    def configure(self) -> None:
        super().configure()
        cfg = self.cfg
        if not cfg.shape_init.startswith("mesh:"):
            raise UserError(f"geometry.shape_init: custom-mesh expects mesh:<file>, got {cfg.shape_init!r}")
        check_shape_init(cfg.shape_init, cfg.shape_init_params, cfg.shape_init_mesh_up, cfg.shape_init_mesh_front)
        path = cfg.shape_init.partition(":")[2]
        mesh = load_mesh(path, cfg.shape_init_params, cfg.shape_init_mesh_up, cfg.shape_init_mesh_front, cfg.radius)
        self.register_buffer("v_buffer", mesh.v_pos)  # [Nv, 3]
        self.register_buffer("t_buffer", mesh.t_pos_idx)  # [Nf, 3]
        self._mesh: Mesh | None = None
        if cfg.n_feature_dims > 0:
            self.encoding = get_encoding(cfg.n_input_dims, cfg.pos_encoding_config)
            self.feature_network = get_mlp(self.encoding.n_output_dims, cfg.n_feature_dims, cfg.mlp_network_config)

    def isosurface(self) -> Mesh:
        """The mesh, one object for all calls, so that what is derived from it is made once."""
        if self._mesh is None or self._mesh.v_pos is not self.v_buffer:
            self._mesh = Mesh(self.v_buffer, self.t_buffer)
        return self._mesh

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for name in ("v_buffer", "t_buffer"):
            if prefix + name in state_dict:
                setattr(self, name, state_dict[prefix + name].to(self.v_buffer.device, copy=True))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, points: Tensor, output_normal: bool = False) -> dict[str, Tensor]:
        """points [..., 3] in world units -> features [..., n_feature_dims]; normals are the mesh's."""
        return self.export(points)

    def export(self, points: Tensor, **kwargs: Any) -> dict[str, Any]:
        """points [N, 3] on the surface -> features [N, n_feature_dims]."""
        if self.cfg.n_feature_dims == 0:
            return {}
        unit = contract_to_unisphere(points, self.bbox)
        features = self.feature_network(self.encoding(unit.reshape(-1, self.cfg.n_input_dims)))
        return {"features": features.view(*points.shape[:-1], self.cfg.n_feature_dims)}

    def init_from_mesh(self, mesh: Mesh, material: BaseMaterial, steps: int) -> None:
        """Takes the mesh in place of ``shape_init``'s and fits the features to its colours."""
        self.v_buffer, self.t_buffer = mesh.v_pos.to(self.v_buffer), mesh.t_pos_idx.to(self.t_buffer)
        if self.cfg.n_feature_dims > 0:
            fit_to_mesh(self, material, mesh, self.cfg.radius, steps)
