"""Style-modulated 3D convolutions: the building blocks of the 3DConv-net.

StyleGAN2 (Karras et al. 2020, arXiv 1912.04958, section 2.2) in three dimensions. The
modulation is applied to activations rather than to weights, which is the same map and
leaves one ordinary convolution for the whole batch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAK, GAIN = 0.2, math.sqrt(2.0)  # leaky ReLU and the gain that keeps its output's variance
CLAMP = 256.0  # keeps activations finite in half precision


class _LeakyReLU(torch.autograd.Function):
    """Leak, gain and bounds in one: of the three steps' results, the gradient needs the last alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = F.leaky_relu(x, LEAK).mul_(GAIN).clamp_(-CLAMP, CLAMP)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        through = torch.ops.aten.leaky_relu_backward(gradient, y, LEAK, True)  # the sign of y is that of x
        return through.mul_(GAIN).masked_fill_(y.abs() >= CLAMP, 0)


def leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU times a gain that keeps the variance, within [-CLAMP, CLAMP]: [...] -> [...]."""
    return _LeakyReLU.apply(x)


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


def activation_layout(device: torch.device) -> torch.memory_format:
    """How activations [B, C, D, H, W] lie in memory.

    On a CPU channels come last: a trilinear interpolation takes a fifth of the time that it takes with channels first,
    a convolution's gradient two fifths, and features lie as the look-up reads them.
    """
    return torch.channels_last_3d if device.type == "cpu" else torch.contiguous_format


def modulated_conv3d(x: Tensor, weight: Tensor, style: Tensor, demodulate: bool) -> Tensor:
    """Convolve with weights scaled by each sample's style.

    x [B, I, D, H, W], weight [O, I, k, k, k], style [B, I] -> [B, O, D, H, W].
    Demodulation divides by the norm that the modulated weights have (eq. 3 of the paper).
    """
    y = F.conv3d(x * style[:, :, None, None, None], weight, padding=weight.shape[-1] // 2)
    y = y.contiguous(memory_format=activation_layout(y.device))  # small grids come back channels first
    if demodulate:
        energy = weight.square().sum(dim=(2, 3, 4))  # [O, I]
        norm = (style.square() @ energy.T + 1e-8).rsqrt()  # [B, O]
        y = y * norm[:, :, None, None, None]
    return y


def doubled(grids: Tensor, align_corners: bool) -> Tensor:
    """Grids [B, C, R, R, R] at twice the resolution, trilinear: faces of the cube stay in place, or its corner voxels'
    centres."""
    return F.interpolate(grids, scale_factor=2, mode="trilinear", align_corners=align_corners)


class SynthesisLayer(nn.Module):
    """A modulated convolution, optional doubling of the grid, learned constant and noise, leaky ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resolution: int,
        style_dim: int,
        upsample: bool,
        constant_bias: bool,
        align_corners: bool = False,
    ):
        super().__init__()
        self.affine = EqualizedLinear(style_dim, in_channels, bias=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3, 3))
        self.scale = 1 / math.sqrt(in_channels * 27)
        self.upsample = upsample
        self.align_corners = align_corners
        self.resolution = resolution
        self.bias = nn.Parameter(torch.zeros(out_channels))
        # What a voxel is by its place alone, for every prompt.
        self.place_bias = nn.Parameter(torch.zeros(out_channels, *(resolution,) * 3)) if constant_bias else None
        self.noise_strength = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, style: Tensor, noise: bool) -> Tensor:
        """x [B, I, r, r, r], style [B, S] -> [B, O, R, R, R]; `noise` draws from the global generator."""
        y = modulated_conv3d(x, self.weight * self.scale, self.affine(style), demodulate=True)
        if self.upsample:
            y = doubled(y, self.align_corners)
        y = y + self.bias[:, None, None, None]
        if self.place_bias is not None:
            # Laid out as y once for all samples; else each would be added against the grain.
            y = y + self.place_bias[None].contiguous(memory_format=activation_layout(y.device))
        if noise:
            y = y + self.noise_strength * torch.randn_like(y[:, :1])
        return leaky_relu(y)


class _AddProduct(torch.autograd.Function):
    """Adds voxels [B, R^3, I] times weight [B, I, O] to grids [B, O, R, R, R], in place; channels lie last in grids.

    The grid of the last resolution is the largest tensor of a step. Were its rows changed in place outside of a
    Function, they would be a changed view to autograd, whose gradient takes three more tensors of that size.
    """

    @staticmethod
    def forward(ctx: Any, grids: Tensor, voxels: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(voxels, weight)
        ctx.mark_dirty(grids)
        grids.permute(0, 2, 3, 4, 1).view(len(grids), -1, grids.shape[1]).baddbmm_(voxels, weight)
        return grids

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        voxels, weight = ctx.saved_tensors
        rows = gradient.permute(0, 2, 3, 4, 1).reshape(len(gradient), -1, gradient.shape[1])
        return gradient, rows.bmm(weight.transpose(1, 2)), voxels.transpose(1, 2).bmm(rows)


class ToFeatures(nn.Module):
    """A modulated 1x1x1 convolution without demodulation: the skip output of a resolution."""

    def __init__(self, in_channels: int, out_channels: int, style_dim: int, align_corners: bool = False):
        super().__init__()
        self.affine = EqualizedLinear(style_dim, in_channels, bias=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1, 1))
        self.scale = 1 / math.sqrt(in_channels)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.align_corners = align_corners

    def forward(self, x: Tensor, style: Tensor, skip: Tensor | None = None) -> Tensor:
        """x [B, I, R, R, R], style [B, S], the coarser skip output [B, O, R / 2, R / 2, R / 2] -> [B, O, R, R, R]."""
        # As a matrix product, voxels times channels: one for the whole grid, whose result lies channels last.
        weight = self.weight.flatten(1).T * self.scale * self.affine(style)[:, :, None]  # [B, I, O]
        voxels = x.flatten(2).transpose(1, 2)  # [B, R^3, I]
        if skip is not None:
            # A bias is the same before the doubling and behind it.
            coarse = skip + self.bias[:, None, None, None]
            fine = doubled(coarse, self.align_corners)
            return _AddProduct.apply(fine.contiguous(memory_format=torch.channels_last_3d), voxels, weight)
        y = torch.baddbmm(self.bias, voxels, weight)
        # Flattened first: of one sample, y's first stride is not that of a grid, and channels would not count as last.
        return y.flatten(0, 1).view(len(x), *x.shape[2:], -1).permute(0, 4, 1, 2, 3)
