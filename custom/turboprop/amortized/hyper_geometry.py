"""`turboprop-hyper-ingp`: Hyper-iNGP as a threestudio module."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

import threestudio
from threestudio.models.geometry.features import hash_grid_defaults
from threestudio.models.networks import get_encoding
from threestudio.utils.value_checks import check_at_least

from .field import Field
from .geometry import GeneratorGeometry
from .hyper_network import HyperNetwork, PromptHeads, SharedSpace


@threestudio.register("turboprop-hyper-ingp")
class HyperGeometry(GeneratorGeometry):
    """ScaleDreamer's Hyper-iNGP: one hash grid for all prompts, and networks of each that read it.

    It takes no noise: a prompt has one object.
    """

    @dataclass
    class Config(GeneratorGeometry.Config):
        sphere_radius: float = 0.5  # the first shape, the same for every prompt, world units
        # of the point in the cube, mapped to [0, 1]^3, in the form of tiny-cuda-nn
        pos_encoding_config: dict[str, Any] = field(default_factory=hash_grid_defaults)
        hyper_dim: int = 64  # width of the hyper-network
        hyper_layers: int = 1  # hidden layers of the hyper-network
        hidden_layers: int = 1  # hidden layers of the networks that it makes, hidden_dim wide
        spectral_norm: bool = False  # of the hyper-network's layers
        lattice_resolution: int = 64  # points along an axis, at which a render looks for surfaces first

    cfg: Config
    positive_keys = (*GeneratorGeometry.positive_keys, "hyper_dim")

    def configure(self) -> None:
        super().configure()
        cfg = self.cfg
        for key, least in (("hyper_layers", 1), ("hidden_layers", 1), ("lattice_resolution", 2)):
            check_at_least(f"geometry.{key}", cfg[key], least)
        self.encoding = get_encoding(3, cfg.pos_encoding_config)
        inside = [self.encoding.n_output_dims, *[cfg.hidden_dim] * cfg.hidden_layers]
        networks = [[*inside, outputs] for outputs in (1, cfg.n_feature_dims)]
        self.hyper_network = HyperNetwork(cfg.text_dim, cfg.hyper_dim, cfg.hyper_layers, networks, cfg.spectral_norm)

    def generate_space_cache(self, styles: Tensor, text_embed: Tensor) -> Field:
        self.check_text(text_embed)
        sdf, color = self.hyper_network(text_embed)
        space = SharedSpace(self.encoding, len(text_embed), self.cfg.lattice_resolution, text_embed)
        return Field(PromptHeads(sdf, color, self.cfg.sphere_radius), space, self.cfg.radius)
