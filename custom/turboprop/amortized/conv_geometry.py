"""`turboprop-3dconv-net`: the 3DConv-net as a threestudio module."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

import threestudio
from threestudio.utils.value_checks import check_choice

from .conv_generator import CONSTANT_BIASES, ConvGenerator
from .field import Field, FieldHeads
from .geometry import GeneratorGeometry
from .voxel_sampling import VoxelSpace, flatten_grids


@threestudio.register("turboprop-3dconv-net")
class ConvNetGeometry(GeneratorGeometry):
    """ScaleDreamer's 3DConv-net: pooled text (and noise) to a grid of features a prompt."""

    @dataclass
    class Config(GeneratorGeometry.Config):
        noise_dim: int = 64  # width of the noise that varies an object; 0 for one object a prompt
        style_dim: int = 256  # width of the style that modulates every layer
        feature_dim: int = 32  # features by voxel
        # Width of the synthesis network at 4^3, 8^3, ...; the last is the grid's resolution.
        channels: list[int] = field(default_factory=lambda: [512, 512, 512, 256, 128, 64])
        constant_bias_up_to: int = 64  # largest resolution that learns values by voxel, the same for all prompts
        # where they are: layers, a bias in both layers of a resolution, zero at the start; or between the two layers,
        # random at the start, as in ScaleDreamer
        constant_bias: str = "layers"
        layer_noise: bool = True  # noise of learned strength in every layer while training
        # what stays in place where a grid is doubled: the centres of the corner voxels, as in ScaleDreamer, or the
        # faces of the cube
        align_corners: bool = False

    cfg: Config
    positive_keys = (*GeneratorGeometry.positive_keys, "style_dim", "feature_dim")

    def configure(self) -> None:
        super().configure()
        cfg = self.cfg
        check_choice("geometry.constant_bias", cfg.constant_bias, CONSTANT_BIASES)
        self.generator = ConvGenerator(
            text_dim=cfg.text_dim,
            noise_dim=cfg.noise_dim,
            style_dim=cfg.style_dim,
            feature_dim=cfg.feature_dim,
            channels={4 * 2**i: width for i, width in enumerate(cfg.channels)},
            constant_bias_up_to=cfg.constant_bias_up_to,
            constant_bias=cfg.constant_bias,
            align_corners=cfg.align_corners,
        )
        self.heads = FieldHeads(cfg.feature_dim, cfg.hidden_dim, cfg.n_feature_dims, cfg.sphere_radius)

    def generate_space_cache(self, styles: Tensor, text_embed: Tensor) -> Field:
        self.check_text(text_embed)
        grids = self.generator(styles, text_embed, self.cfg.layer_noise and self.training)
        return Field(self.heads, VoxelSpace(flatten_grids(grids), grids.shape[-1]), self.cfg.radius)
