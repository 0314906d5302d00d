"""Features that a network reads off an encoding of the point: the config's keys, and what geometries do with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch.nn as nn
from torch import Tensor

from threestudio.models.geometry.base import contract_to_unisphere
from threestudio.models.networks import get_encoding, get_mlp


def hash_grid_defaults() -> dict:
    return {
        "otype": "HashGrid",
        "n_levels": 16,
        "n_features_per_level": 2,
        "log2_hashmap_size": 19,
        "base_resolution": 16,
        "per_level_scale": 1.447269237440378,
    }


def mlp_defaults() -> dict:
    return {
        "otype": "VanillaMLP",
        "activation": "ReLU",
        "output_activation": "none",
        "n_neurons": 64,
        "n_hidden_layers": 1,
    }


@dataclass
class FeatureConfig:
    n_input_dims: int = 3  # of a point
    n_feature_dims: int = 3  # features that the material sees; 0: none
    pos_encoding_config: dict = field(default_factory=hash_grid_defaults)
    mlp_network_config: dict = field(default_factory=mlp_defaults)


class EncodedFeatures:
    """Goes before the base class of a geometry whose config has the keys above, and which has a `bbox`."""

    unbounded = False  # see contract_to_unisphere
    encoding: nn.Module
    feature_network: nn.Module

    @property
    def has_features(self) -> bool:
        return self.cfg.n_feature_dims > 0

    def make_features(self) -> None:
        """Makes the encoding and the features' network, where there are features."""
        if self.has_features:
            self.encoding = get_encoding(self.cfg.n_input_dims, self.cfg.pos_encoding_config)
            self.feature_network = get_mlp(
                self.encoding.n_output_dims, self.cfg.n_feature_dims, self.cfg.mlp_network_config
            )

    def encoded(self, points: Tensor) -> Tensor:
        """points [..., 3] in world units -> [N, E]."""
        unit = contract_to_unisphere(points, self.bbox, self.unbounded)
        return self.encoding(unit.reshape(-1, self.cfg.n_input_dims))

    def features_of(self, points: Tensor, encoded: Tensor) -> Tensor:
        """points [..., 3] and their encoding [N, E] -> [..., n_feature_dims]."""
        return self.feature_network(encoded).view(*points.shape[:-1], self.cfg.n_feature_dims)

    def export(self, points: Tensor, **kwargs: Any) -> dict[str, Any]:
        """points [..., 3] on the surface -> features [..., n_feature_dims]."""
        return {"features": self.features_of(points, self.encoded(points))} if self.has_features else {}
