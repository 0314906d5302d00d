"""`turboprop-triplane-transformer`: the Triplane-Transformer as a threestudio module."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import threestudio
from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import check_at_least

from .field import Field, FieldHeads
from .geometry import GeneratorGeometry
from .plane_sampling import PlaneSpace
from .triplane_transformer import TriplaneTransformer


@threestudio.register("turboprop-triplane-transformer")
class TriplaneGeometry(GeneratorGeometry):
    """ScaleDreamer's Triplane-Transformer: the text's tokens to three planes of features a prompt.

    It takes no noise: a prompt has one object.
    """

    @dataclass
    class Config(GeneratorGeometry.Config):
        local_text: bool = True  # the embedding of each token of the text; false: the pooled one as the only token
        inner_dim: int = 768  # width of a token
        num_layers: int = 12
        num_heads: int = 16
        mlp_ratio: float = 4.0  # width of the network by token, in inner_dim
        triplane_low_res: int = 32  # tokens along an axis of a plane; planes have twice as many cells
        triplane_dim: int = 32  # features of a cell
        # spread of the first tokens; null: inner_dim^-0.5, as published, which is small beside what the text adds
        token_std: float | None = None
        hidden_layers: int = 2  # of the networks that read features, hidden_dim wide

    cfg: Config
    positive_keys = (*GeneratorGeometry.positive_keys, "inner_dim", "mlp_ratio", "triplane_dim")

    def configure(self) -> None:
        super().configure()
        cfg = self.cfg
        for key in ("num_layers", "num_heads", "triplane_low_res", "hidden_layers"):
            check_at_least(f"geometry.{key}", cfg[key], 1)
        if cfg.token_std is not None and cfg.token_std <= 0:
            raise UserError(f"geometry.token_std: expected more than 0, or null, got {cfg.token_std:g}")
        self.local_text = cfg.local_text
        self.generator = TriplaneTransformer(
            cfg.text_dim,
            cfg.inner_dim,
            cfg.num_layers,
            cfg.num_heads,
            cfg.mlp_ratio,
            cfg.triplane_low_res,
            cfg.triplane_dim,
            cfg.token_std,
        )
        self.heads = FieldHeads(
            3 * cfg.triplane_dim, cfg.hidden_dim, cfg.n_feature_dims, cfg.sphere_radius, cfg.hidden_layers
        )

    def generate_space_cache(self, styles: Tensor, text_embed: Tensor) -> Field:
        self.check_text(text_embed)
        planes = self.generator(text_embed if self.local_text else text_embed[:, None])
        return Field(self.heads, PlaneSpace.of(planes), self.cfg.radius)
