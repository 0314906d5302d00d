"""Modulated convolutions against StyleGAN2's own form: weights by sample, one grouped convolution."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from turboprop.amortized.modulated_conv import (
    CLAMP,
    EqualizedLinear,
    SynthesisLayer,
    ToFeatures,
    leaky_relu,
    modulated_conv3d,
    normalize_second_moment,
)


def grouped_twin(x: torch.Tensor, weight: torch.Tensor, style: torch.Tensor, demodulate: bool) -> torch.Tensor:
    """Karras et al. 2020, eq. 1-3: w' = s w, w'' = w' / |w'|, a group for each sample."""
    batch, inputs = x.shape[:2]
    outputs, size = weight.shape[0], weight.shape[-1]
    own = weight[None] * style[:, None, :, None, None, None]  # [B, O, I, k, k, k]
    if demodulate:
        own = own / (own.square().sum(dim=(2, 3, 4, 5), keepdim=True) + 1e-8).sqrt()
    flat = x.reshape(1, batch * inputs, *x.shape[2:])
    y = F.conv3d(flat, own.reshape(batch * outputs, inputs, size, size, size), padding=size // 2, groups=batch)
    return y.reshape(batch, outputs, *x.shape[2:])


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("size", [1, 3])
def test_equals_weights_modulated_by_sample(demodulate, size):
    torch.manual_seed(0)
    inputs = [
        torch.randn(3, 4, 5, 6, 7, dtype=torch.float64),
        torch.randn(5, 4, size, size, size, dtype=torch.float64),
        torch.randn(3, 4, dtype=torch.float64),
    ]
    results = []
    for function in (modulated_conv3d, grouped_twin):
        leaves = [v.clone().requires_grad_() for v in inputs]
        y = function(*leaves, demodulate)
        torch.manual_seed(1)
        factor = torch.randn(y.shape, dtype=y.dtype)  # not randn_like, which draws in the order that y has in memory
        results.append([y, *torch.autograd.grad((y * factor).sum(), leaves)])
    for ours, twin in zip(*results):
        assert torch.allclose(ours, twin, atol=1e-9, rtol=1e-9)


def test_demodulated_outputs_keep_unit_variance():
    torch.manual_seed(0)
    x, weight, style = torch.randn(4, 16, 8, 8, 8), torch.randn(8, 16, 3, 3, 3), 3 * torch.randn(4, 16)
    y = modulated_conv3d(x, weight, style, demodulate=True)[..., 1:-1, 1:-1, 1:-1]
    assert y.var(dim=(2, 3, 4)).mean() == pytest.approx(1, abs=0.15)


def test_leaky_relu_keeps_the_second_moment_and_is_clamped():
    x = torch.randn(200000, generator=torch.Generator().manual_seed(0))
    assert leaky_relu(x).square().mean() == pytest.approx(1.04, abs=0.02)  # (1 + 0.2^2) / 2 * 2
    assert torch.allclose(leaky_relu(torch.tensor([1.0, -1.0])), torch.tensor([math.sqrt(2), -0.2 * math.sqrt(2)]))
    assert leaky_relu(torch.tensor([1e6, -1e6])).tolist() == [CLAMP, -CLAMP]


def test_the_gradient_of_leaky_relu_is_that_of_its_three_steps():
    x = torch.tensor([3.0, -2.0, 0.5, -0.1, 1e6, -1e6], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(leaky_relu(x).sum(), x)
    assert torch.allclose(gradient, math.sqrt(2) * torch.tensor([1, 0.2, 1, 0.2, 0, 0], dtype=torch.float64))
    assert torch.autograd.gradgradcheck(leaky_relu, x[:4].detach().requires_grad_())


def test_second_moment_is_one():
    x = 7 * torch.randn(3, 32)
    assert torch.allclose(normalize_second_moment(x).square().mean(1), torch.ones(3), atol=1e-4)
    assert torch.isfinite(normalize_second_moment(torch.zeros(1, 4))).all()


def test_equalized_linear_has_outputs_of_unit_variance_whatever_its_width():
    torch.manual_seed(0)
    for width in (8, 512):
        layer = EqualizedLinear(width, 4000, bias=0.5)
        y = layer(torch.ones(1, width)).detach() - 0.5
        assert float(y.std()) == pytest.approx(1, abs=0.1)


def test_layer_doubles_its_grid_and_has_a_bias_by_voxel():
    torch.manual_seed(0)
    layer = SynthesisLayer(3, 5, resolution=8, style_dim=6, upsample=True, constant_bias=True)
    x, style = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 6)
    before = layer(x, style, noise=False)
    assert before.shape == (2, 5, 8, 8, 8)
    with torch.no_grad():
        layer.place_bias[2, 1, 3, 5] += 50
    changed = layer(x, style, noise=False) != before
    assert int(changed.sum()) == 2 and bool(changed[:, 2, 1, 3, 5].all())  # that voxel, of both samples


def test_layer_noise_is_drawn_only_when_asked_for():
    torch.manual_seed(0)
    layer = SynthesisLayer(3, 5, 4, 6, upsample=False, constant_bias=False)
    x, style = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 6)
    assert torch.equal(layer(x, style, noise=True), layer(x, style, noise=False))  # of strength 0 at first
    with torch.no_grad():
        layer.noise_strength.fill_(0.5)
    state = torch.get_rng_state()
    quiet = layer(x, style, noise=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(layer(x, style, noise=True), quiet)
    assert torch.equal(layer(x, style, noise=False), quiet)


def test_to_features_is_a_modulated_map_of_each_voxel():
    torch.manual_seed(0)
    layer = ToFeatures(3, 5, 6)
    x, style = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 6)
    expected = torch.einsum("oi,bi,bixyz->boxyz", layer.weight[:, :, 0, 0, 0] * layer.scale, layer.affine(style), x)
    assert torch.allclose(layer(x, style), expected, atol=1e-5)


def test_to_features_adds_the_coarser_skip_output_doubled():
    torch.manual_seed(0)
    layer = ToFeatures(3, 5, 6).double()
    x, style, skip = (torch.randn(*size, dtype=torch.float64) for size in ((2, 3, 4, 4, 4), (2, 6), (2, 5, 2, 2, 2)))
    with torch.no_grad():
        layer.bias.normal_()
    leaves = [x, style, skip, layer.bias, layer.weight]
    results = []
    for which in ("ours", "twin"):
        for leaf in leaves:
            leaf.requires_grad_()
        if which == "ours":
            y = layer(x, style, skip)
        else:
            weight = layer.weight * layer.scale
            y = modulated_conv3d(x, weight, layer.affine(style), demodulate=False) + layer.bias[:, None, None, None]
            y = y + F.interpolate(skip, scale_factor=2, mode="trilinear", align_corners=False)
        factor = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
        results.append([y, *torch.autograd.grad((y * factor).sum(), leaves)])
    for ours, twin in zip(*results):
        assert torch.allclose(ours, twin, atol=1e-10, rtol=1e-9)


class LargeResults(TorchDispatchMode):
    """Names the operators whose result is new memory for at least so many numbers."""

    def __init__(self, least: int):
        super().__init__()
        self.least, self.operators = least, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        known = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.numel() >= self.least and x.untyped_storage().data_ptr() not in known:
                self.operators.append(str(function))
        return result


@pytest.mark.parametrize("batch", [1, 3])
def test_the_gradient_of_a_skip_output_takes_no_further_grids(batch):
    """Rows of a grid that were changed in place as a view took three: 0.8 GB of a step at 128^3."""
    last, size, channels = torch.channels_last_3d, 16, 32
    layer = ToFeatures(2, channels, 6)
    x = torch.randn(batch, 2, *(size,) * 3).contiguous(memory_format=last).requires_grad_()
    skip = torch.randn(batch, channels, *(size // 2,) * 3).contiguous(memory_format=last).requires_grad_()
    y = layer(x, torch.randn(batch, 6), skip)
    gradient = torch.randn(y.shape).contiguous(memory_format=last)
    with LargeResults(y.numel()) as seen:
        y.backward(gradient)
    assert not seen.operators


@pytest.mark.parametrize("batch", [1, 3])
def test_on_a_cpu_channels_stay_last(batch):
    """Else a grid is copied at every interpolation, which no result would tell."""
    layer, features = SynthesisLayer(3, 5, 8, 6, upsample=True, constant_bias=True), ToFeatures(5, 2, 6)
    style = torch.randn(batch, 6)
    x = layer(torch.randn(batch, 3, 4, 4, 4), style, noise=True)
    for grid in (x, features(x, style), features(x, style, torch.randn(batch, 2, 4, 4, 4))):
        assert grid.is_contiguous(memory_format=torch.channels_last_3d) and grid.stride(0) == grid[0].numel()
