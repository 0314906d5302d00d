"""A small network over the view direction: the background that text-to-3D trains together with the object."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

import threestudio
from threestudio.models.background.base import BaseBackground, randomly_replaced
from threestudio.models.networks import get_encoding, get_mlp
from threestudio.utils.devices import constant
from threestudio.utils.errors import UserError
from threestudio.utils.ops import get_activation


@threestudio.register("neural-environment-map-background")
class NeuralEnvironmentMapBackground(BaseBackground):
    @dataclass
    class Config(BaseBackground.Config):
        n_output_dims: int = 3  # channels of the colour
        color_activation: str = "sigmoid"  # last activation
        dir_encoding_config: dict = field(
            default_factory=lambda: {"otype": "SphericalHarmonics", "degree": 3}
        )  # encoding of the direction, mapped to [0, 1]
        mlp_network_config: dict = field(
            default_factory=lambda: {
                "otype": "VanillaMLP",
                "activation": "ReLU",
                "output_activation": "none",
                "n_neurons": 16,
                "n_hidden_layers": 2,
            }
        )
        random_aug: bool = False  # while training, sometimes replace the background by random colours
        random_aug_prob: float = 0.5  # how often, in [0, 1]
        eval_color: tuple[float, float, float] | None = None  # fixed colour outside training, in [0, 1]

    cfg: Config

    def configure(self) -> None:
        self.activation = get_activation(self.cfg.color_activation, "background.color_activation")
        if self.cfg.eval_color is not None and len(self.cfg.eval_color) != self.cfg.n_output_dims:
            raise UserError(
                f"background.eval_color: expected {self.cfg.n_output_dims} numbers, got {list(self.cfg.eval_color)}"
            )
        self.encoding = get_encoding(3, self.cfg.dir_encoding_config)
        self.network = get_mlp(self.encoding.n_output_dims, self.cfg.n_output_dims, self.cfg.mlp_network_config)

    def forward(self, dirs: Tensor) -> Tensor:
        """dirs [B, H, W, 3], unit length -> colours [B, H, W, n_output_dims]."""
        if not self.training and self.cfg.eval_color is not None:
            return constant(tuple(self.cfg.eval_color), dirs).expand(*dirs.shape[:-1], -1)
        unit = (dirs.reshape(-1, 3) + 1.0) / 2.0
        color = self.network(self.encoding(unit)).reshape(*dirs.shape[:-1], self.cfg.n_output_dims)
        color = self.activation(color)
        if self.training and self.cfg.random_aug:
            color = self.augmented(color)
        return color

    def augmented(self, color: Tensor, shared: bool = False) -> Tensor:
        """Colours [B, H, W, C] of a training step with `random_aug`: at times a random one, for each image or all."""
        return randomly_replaced(color, self.cfg.random_aug_prob, shared)
