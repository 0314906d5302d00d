"""Features are colours: an activation, or a small network, and no light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

import threestudio
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.networks import get_mlp
from threestudio.utils.errors import UserError
from threestudio.utils.ops import get_activation
from threestudio.utils.value_checks import check_at_least


@threestudio.register("no-material")
class NoMaterial(BaseMaterial):
    @dataclass
    class Config(BaseMaterial.Config):
        n_output_dims: int = 3  # channels of the colour
        color_activation: str = "sigmoid"  # last activation, see utils.ops.get_activation
        input_feature_dims: int | None = None  # features into the network; only with mlp_network_config
        mlp_network_config: dict | None = None  # None: the features themselves are the colour before activation
        requires_normal: bool = False  # ask the geometry for normals, as if this material shaded

    cfg: Config

    def configure(self) -> None:
        self.activation = get_activation(self.cfg.color_activation, "material.color_activation")
        check_at_least("material.n_output_dims", self.cfg.n_output_dims, 0)
        self.use_network = False
        if (self.cfg.input_feature_dims is None) != (self.cfg.mlp_network_config is None):
            raise UserError("material: input_feature_dims and mlp_network_config go together, only one was given")
        if self.cfg.mlp_network_config is not None:
            self.network = get_mlp(self.cfg.input_feature_dims, self.cfg.n_output_dims, self.cfg.mlp_network_config)
            self.use_network = True
        self.requires_normal = self.cfg.requires_normal

    def forward(self, features: Tensor, **kwargs: Any) -> Tensor:
        """features [..., F] -> colours [..., n_output_dims]."""
        if self.use_network:
            flat = self.network(features.reshape(-1, features.shape[-1]))
            features = flat.reshape(*features.shape[:-1], self.cfg.n_output_dims)
        elif features.shape[-1] != self.cfg.n_output_dims:
            raise UserError(
                f"no-material: expected {self.cfg.n_output_dims} feature channels (n_output_dims), got "
                f"{features.shape[-1]} (geometry.n_feature_dims)"
            )
        return self.activation(features)

    def export(self, features: Tensor | None = None, **kwargs: Any) -> dict[str, Any]:
        """Nothing of a geometry without features, as stages that train a shape alone have."""
        if features is None or self.cfg.n_output_dims == 0:
            return {}
        color = self(features, **kwargs).clamp(0, 1)
        if color.shape[-1] < 3:
            raise UserError(
                f"no-material: colours have {color.shape[-1]} channels, an exported texture needs at least 3"
            )
        return {"albedo": color[..., :3]}
