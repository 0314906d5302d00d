"""Colours that change with the direction of view: a small network of features and direction, as in NeRF."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.networks import get_encoding, get_mlp
from threestudio.utils.errors import UserError
from threestudio.utils.ops import get_activation

# Six along the axes and eight to the corners of a cube: an even spread of directions.
_SPREAD = [[s * (i == axis) for i in range(3)] for axis in range(3) for s in (1.0, -1.0)]
_SPREAD += [[x / 3**0.5, y / 3**0.5, z / 3**0.5] for x in (1, -1) for y in (1, -1) for z in (1, -1)]


@threestudio.register("neural-radiance-material")
class NeuralRadianceMaterial(BaseMaterial):
    @dataclass
    class Config(BaseMaterial.Config):
        input_feature_dims: int = 8  # features of a point: geometry.n_feature_dims
        color_activation: str = "sigmoid"  # last activation, see utils.ops.get_activation
        # of the direction, mapped to [0, 1]^3, in the form of tiny-cuda-nn
        dir_encoding_config: dict = field(default_factory=lambda: {"otype": "SphericalHarmonics", "degree": 3})
        mlp_network_config: dict = field(
            default_factory=lambda: {
                "otype": "FullyFusedMLP", "activation": "ReLU", "n_neurons": 16, "n_hidden_layers": 2,
            }
        )  # fmt: skip

    cfg: Config

    def configure(self) -> None:
        self.activation = get_activation(self.cfg.color_activation, "material.color_activation")
        self.encoding = get_encoding(3, self.cfg.dir_encoding_config)
        inputs = self.cfg.input_feature_dims + self.encoding.n_output_dims
        self.network = get_mlp(inputs, 3, self.cfg.mlp_network_config)

    def forward(self, features: Tensor, viewdirs: Tensor, **kwargs: Any) -> Tensor:
        """features [..., F], viewdirs [..., 3] unit, from the camera -> colours [..., 3]."""
        if features.shape[-1] != self.cfg.input_feature_dims:
            raise UserError(
                f"neural-radiance-material: expected {self.cfg.input_feature_dims} feature channels "
                f"(input_feature_dims), got {features.shape[-1]} (geometry.n_feature_dims)"
            )
        encoded = self.encoding((viewdirs.reshape(-1, 3) + 1.0) / 2.0)
        inputs = torch.cat([features.reshape(-1, features.shape[-1]), encoded], dim=-1)
        return self.activation(self.network(inputs).reshape(*features.shape[:-1], 3))

    def export(self, features: Tensor, **kwargs: Any) -> dict[str, Any]:
        """The mean colour over all sides, for a texture has one colour at a point."""
        colors = [self(features, features.new_tensor(side).expand(*features.shape[:-1], 3)) for side in _SPREAD]
        return {"albedo": torch.stack(colors).mean(0).clamp(0, 1)}
