"""`turboprop-text-background`: a background that reads the text, of ScaleDreamer's Hyper-iNGP configs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.models.background.base import BaseBackground, randomly_replaced
from threestudio.models.networks import get_encoding
from threestudio.utils.devices import constant
from threestudio.utils.errors import UserError
from threestudio.utils.ops import get_activation
from threestudio.utils.value_checks import check_at_least

from .hyper_network import HyperNetwork, network_of_owner


def direction_grid_defaults() -> dict[str, Any]:
    """Eight levels from 4 to 256 cells along an axis of the cube of directions."""
    return {
        "otype": "HashGrid",
        "n_levels": 8,
        "n_features_per_level": 2,
        "log2_hashmap_size": 19,
        "base_resolution": 4,
        "per_level_scale": 64 ** (1 / 7),
    }


@threestudio.register("turboprop-text-background")
class TextBackground(BaseBackground):
    """Colours by direction: an encoding that all prompts share, read by a network that each prompt's text makes."""

    @dataclass
    class Config(BaseBackground.Config):
        n_output_dims: int = 3  # channels of the colour
        color_activation: str = "sigmoid"  # last activation
        # of the direction, mapped to [0, 1]^3, in the form of tiny-cuda-nn
        pos_encoding_config: dict[str, Any] = field(default_factory=direction_grid_defaults)
        text_dim: int = 1024  # width of the pooled text embedding: that of geometry.text_dim
        hyper_dim: int = 64  # width of the hyper-network
        hyper_layers: int = 1  # hidden layers of the hyper-network
        hidden_dim: int = 64  # width of the network that it makes
        hidden_layers: int = 1  # hidden layers of the network that it makes
        spectral_norm: bool = False  # of the hyper-network's layers
        random_aug: bool = False  # while training, sometimes replace the background by random colours
        random_aug_prob: float = 0.5  # how often, in [0, 1]
        eval_color: tuple[float, float, float] | None = None  # fixed colour outside training, in [0, 1]

    cfg: Config

    def configure(self) -> None:
        cfg = self.cfg
        for key in ("n_output_dims", "text_dim", "hyper_dim", "hyper_layers", "hidden_dim", "hidden_layers"):
            check_at_least(f"background.{key}", cfg[key], 1)
        self.activation = get_activation(cfg.color_activation, "background.color_activation")
        self.encoding = get_encoding(3, cfg.pos_encoding_config)
        widths = [self.encoding.n_output_dims, *[cfg.hidden_dim] * cfg.hidden_layers, cfg.n_output_dims]
        self.hyper_network = HyperNetwork(cfg.text_dim, cfg.hyper_dim, cfg.hyper_layers, [widths], cfg.spectral_norm)

    def forward(
        self,
        dirs: Tensor,  # [P * V, H, W, 3] unit, prompt by prompt
        text_embed: Tensor | None = None,  # [P, T]
    ) -> Tensor:
        """Colours [P * V, H, W, C] of V cameras for each prompt.

        Raises ValueError for a text that is missing, is not pooled, or has another width than the config's.
        """
        cfg = self.cfg
        if not self.training and cfg.eval_color is not None:
            return constant(tuple(cfg.eval_color), dirs).expand(*dirs.shape[:-1], -1)
        if text_embed is None or text_embed.ndim != 2 or text_embed.shape[1] != cfg.text_dim:
            came = "none" if text_embed is None else f"one of shape {list(text_embed.shape)}"
            raise UserError(f"background.text_dim: expected a pooled text [P, {cfg.text_dim}], got {came}")
        (weights,) = self.hyper_network(text_embed)
        unit = (dirs.reshape(-1, 3) + 1.0) / 2.0
        prompts = len(text_embed)
        owner = torch.arange(prompts, device=dirs.device).repeat_interleave(len(unit) // prompts)
        color = network_of_owner(self.encoding(unit).to(text_embed.dtype), owner, weights)
        color = self.activation(color.reshape(*dirs.shape[:-1], cfg.n_output_dims))
        if self.training and cfg.random_aug:
            color = randomly_replaced(color, cfg.random_aug_prob)
        return color
