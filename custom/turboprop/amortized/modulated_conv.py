"""Style-modulated 3D convolutions: the building blocks of the 3DConv-net.

StyleGAN2 (Karras et al. 2020, arXiv 1912.04958, section 2.2) in three dimensions. The
modulation is applied to activations rather than to weights, which is the same map and
leaves one ordinary convolution for the whole batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAK, GAIN = 0.2, math.sqrt(2.0)  # leaky ReLU and the gain that keeps its output's variance
CLAMP = 256.0  # keeps activations finite in half precision


def leaky_relu(x: Tensor) -> Tensor:
    return (F.leaky_relu(x, LEAK) * GAIN).clamp(-CLAMP, CLAMP)


def normalize_second_moment(x: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Rows of unit mean square: [B, C] -> [B, C]."""
    return x * (x.square().mean(dim=1, keepdim=True) + epsilon).rsqrt()


class EqualizedLinear(nn.Module):
    """A linear layer with unit-variance weights, scaled at run time (Karras et al. 2018, section 4.1)."""

    def __init__(self, in_features: int, out_features: int, bias: float = 0.0, activate: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.full((out_features,), bias))
        self.scale = 1 / math.sqrt(in_features)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:  # [B, in] -> [B, out]
        y = F.linear(x, self.weight * self.scale, self.bias)
        return leaky_relu(y) if self.activate else y


def modulated_conv3d(x: Tensor, weight: Tensor, style: Tensor, demodulate: bool) -> Tensor:
    """Convolve with weights scaled by each sample's style.

    x [B, I, D, H, W], weight [O, I, k, k, k], style [B, I] -> [B, O, D, H, W].
    Demodulation divides by the norm that the modulated weights have (eq. 3 of the paper).
    """
    y = F.conv3d(x * style[:, :, None, None, None], weight, padding=weight.shape[-1] // 2)
    if demodulate:
        energy = weight.square().sum(dim=(2, 3, 4))  # [O, I]
        norm = (style.square() @ energy.T + 1e-8).rsqrt()  # [B, O]
        y = y * norm[:, :, None, None, None]
    return y


class SynthesisLayer(nn.Module):
    """A modulated convolution, optional doubling of the grid, learned constant and noise, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, resolution: int, style_dim: int, upsample: bool, constant_bias: bool):
        super().__init__()
        self.affine = EqualizedLinear(style_dim, in_channels, bias=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3, 3))
        self.scale = 1 / math.sqrt(in_channels * 27)
        self.upsample = upsample
        self.resolution = resolution
        self.bias = nn.Parameter(torch.zeros(out_channels))
        # What a voxel is by its place alone, for every prompt.
        self.place_bias = nn.Parameter(torch.zeros(out_channels, *(resolution,) * 3)) if constant_bias else None
        self.noise_strength = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, style: Tensor, noise: bool) -> Tensor:
        """x [B, I, r, r, r], style [B, S] -> [B, O, R, R, R]; `noise` draws from the global generator."""
        y = modulated_conv3d(x, self.weight * self.scale, self.affine(style), demodulate=True)
        if self.upsample:
            y = F.interpolate(y, scale_factor=2, mode="trilinear", align_corners=False)
        y = y + self.bias[:, None, None, None]
        if self.place_bias is not None:
            y = y + self.place_bias
        if noise:
            y = y + self.noise_strength * torch.randn_like(y[:, :1])
        return leaky_relu(y)


class ToFeatures(nn.Module):
    """A modulated 1x1x1 convolution without demodulation: the skip output of a resolution."""

    def __init__(self, in_channels: int, out_channels: int, style_dim: int):
        super().__init__()
        self.affine = EqualizedLinear(style_dim, in_channels, bias=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1, 1))
        self.scale = 1 / math.sqrt(in_channels)
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:  # [B, I, R, R, R], [B, S] -> [B, O, R, R, R]
        y = modulated_conv3d(x, self.weight * self.scale, self.affine(style), demodulate=False)
        return y + self.bias[:, None, None, None]
