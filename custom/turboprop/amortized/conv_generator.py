"""The 3DConv-net of ScaleDreamer (arXiv 2407.02040): text and noise to a grid of features.

A mapping network makes a style from noise and the pooled text embedding; a synthesis
network of modulated 3D convolutions grows a learned constant of 4^3 to the wanted grid,
summing a skip output from every resolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from threestudio.utils.errors import UserError

from .modulated_conv import EqualizedLinear, SynthesisLayer, ToFeatures, activation_layout, normalize_second_moment

FIRST_RESOLUTION = 4
# Where a resolution's learned values by voxel are: a bias in each of both layers, or values added between the two.
CONSTANT_BIASES = ("layers", "between")


class MappingNetwork(nn.Module):
    """Noise [B, Z] and text [B, T] to style [B, S]. Without noise (Z = 0), text alone."""

    def __init__(self, noise_dim: int, text_dim: int, style_dim: int):
        super().__init__()
        self.noise_dim = noise_dim
        hidden = style_dim if noise_dim else 0
        self.noise_layers = nn.ModuleList(
            [EqualizedLinear(noise_dim, style_dim, activate=True), EqualizedLinear(style_dim, style_dim, activate=True)]
            if noise_dim
            else []
        )
        self.output = EqualizedLinear(hidden + text_dim, style_dim)

    def forward(self, noise: Tensor, text: Tensor) -> Tensor:
        if not self.noise_dim:
            return self.output(text)
        hidden = normalize_second_moment(noise)
        for layer in self.noise_layers:
            hidden = layer(hidden)
        return self.output(torch.cat([hidden, text], dim=1))


class SynthesisBlock(nn.Module):
    """Two convolutions at one resolution, the first of which doubles the grid, and the skip output.

    `constant_bias`: one of CONSTANT_BIASES, or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resolution: int,
        feature_dim: int,
        style_dim: int,
        constant_bias: str | None,
        align_corners: bool = False,
    ):
        super().__init__()
        in_layers = constant_bias == "layers"
        first = resolution == FIRST_RESOLUTION
        self.constant = nn.Parameter(torch.randn(out_channels, *(FIRST_RESOLUTION,) * 3)) if first else None
        self.conv0 = (
            None
            if first
            else SynthesisLayer(in_channels, out_channels, resolution, style_dim, True, in_layers, align_corners)
        )
        self.conv1 = SynthesisLayer(out_channels, out_channels, resolution, style_dim, False, in_layers)
        self.between = None
        if constant_bias == "between" and not first:  # the first block's constant is one already
            self.between = nn.Parameter(torch.randn(out_channels, *(resolution,) * 3) / math.sqrt(out_channels))
        self.to_features = ToFeatures(out_channels, feature_dim, style_dim, align_corners)

    def forward(self, x: Tensor | None, skip: Tensor | None, style: Tensor, noise: bool) -> tuple[Tensor, Tensor]:
        if self.constant is not None:
            x = self.constant.expand(len(style), -1, -1, -1, -1)
            x = x.contiguous(memory_format=activation_layout(x.device))
        else:
            x = self.conv0(x, style, noise)
        if self.between is not None:
            x = x + self.between[None].contiguous(memory_format=activation_layout(x.device))
        x = self.conv1(x, style, noise)
        return x, self.to_features(x, style, skip)


class ConvGenerator(nn.Module):
    """Text [B, T] and noise [B, Z] to features [B, F, R, R, R] over the bounding cube (axes z, y, x).

    `channels` gives the width at each resolution, 4, 8, ... up to R. `constant_bias_up_to`
    is the largest resolution with learned values by voxel; `constant_bias`, of CONSTANT_BIASES, says where they are.
    `align_corners` says what stays in place where a grid is doubled, see `doubled`.
    """

    def __init__(
        self,
        text_dim: int,
        noise_dim: int,
        style_dim: int,
        feature_dim: int,
        channels: Mapping[int, int],
        constant_bias_up_to: int,
        constant_bias: str = "layers",
        align_corners: bool = False,
    ):
        super().__init__()
        resolutions = sorted(channels)
        expected = [FIRST_RESOLUTION * 2**i for i in range(len(resolutions))]
        if resolutions != expected:
            raise UserError(f"channels: expected the resolutions {expected}, got {resolutions}")
        self.text_dim, self.noise_dim, self.resolution = text_dim, noise_dim, resolutions[-1]
        self.mapping = MappingNetwork(noise_dim, text_dim, style_dim)
        widths = [channels[r] for r in resolutions]
        self.blocks = nn.ModuleList(
            SynthesisBlock(
                i, o, r, feature_dim, style_dim, constant_bias if r <= constant_bias_up_to else None, align_corners
            )
            for r, i, o in zip(resolutions, [widths[0], *widths], widths)
        )

    def forward(self, noise: Tensor, text: Tensor, layer_noise: bool) -> Tensor:
        style = self.mapping(noise, text)
        x = features = None
        for block in self.blocks:
            x, features = block(x, features, style, layer_noise)
        return features
