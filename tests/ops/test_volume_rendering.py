"""Packed compositing, all backends, against the batched form, closed forms and finite differences."""

import pytest
import torch

from tests.ops.running import skips_without, stays_inside_its_arrays
from threestudio.ops.volume_rendering import (
    accumulate_along_rays,
    available_backends,
    render_weight_from_alpha,
    render_weight_from_density,
    weights_of_depth,
)
from threestudio.ops.volume_rendering.reference import (
    exclusive_sum,
    render_weight_from_density_dense,
)
from threestudio.utils.errors import UserError

DEVICES = [torch.device("cpu"), pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]
BACKENDS = ["torch", "warp", "nerfacc"]


need = skips_without(available_backends)


def uneven(n_rays=40, most=30, seed=0):
    """Samples of rays of 0 to most samples each, float64: t_starts, t_ends, density, ray_indices, colors [S, 3]."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, most + 1, (n_rays,), generator=generator)
    ray = torch.arange(n_rays).repeat_interleave(counts)
    t_starts, length, density = torch.rand(3, ray.shape[0], generator=generator, dtype=torch.float64)
    colors = torch.rand(ray.shape[0], 3, generator=generator, dtype=torch.float64)
    return t_starts, t_starts + 0.2 * length, density**4 * 40, ray, colors


def packed(n_rays=5, n_samples=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    edges = torch.rand(n_rays, n_samples + 1, generator=generator, dtype=torch.float64).sort(-1).values
    density = torch.rand(n_rays, n_samples, generator=generator, dtype=torch.float64) * 5
    ray = torch.arange(n_rays).repeat_interleave(n_samples)
    return edges[:, :-1], edges[:, 1:], density, ray


def test_constant_density_has_the_closed_form():
    """Through a slab of length L and density s: opacity 1 - exp(-s L), mean depth 1/s - L exp(-s L)/(1 - exp(-s L))."""
    density, length, n = 3.0, 2.0, 4000
    edges = torch.linspace(0, length, n + 1, dtype=torch.float64)
    ray = torch.zeros(n, dtype=torch.long)
    weights, transmittance, alpha = render_weight_from_density(
        edges[:-1], edges[1:], torch.full((n,), density).double(), ray
    )
    opacity = 1 - torch.exp(torch.tensor(-density * length, dtype=torch.float64))
    torch.testing.assert_close(weights.sum(), opacity)
    torch.testing.assert_close(transmittance, torch.exp(-density * edges[:-1]))
    torch.testing.assert_close(
        alpha, torch.full_like(alpha, 1 - torch.exp(torch.tensor(-density * length / n)).item()), rtol=1e-5, atol=0
    )
    depth = accumulate_along_rays(weights, ((edges[:-1] + edges[1:]) / 2)[:, None], ray, 1)
    expected = 1 / density - length * (1 - opacity) / opacity
    torch.testing.assert_close(depth[0, 0] / opacity, expected, rtol=1e-5, atol=0)


def test_packed_equals_dense_with_gradients():
    t_starts, t_ends, density, ray = packed()
    colors = torch.rand(5, 7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for flat in (True, False):
        d, c = density.clone().requires_grad_(), colors.clone().requires_grad_()
        if flat:
            w, t, a = render_weight_from_density(t_starts.reshape(-1), t_ends.reshape(-1), d.reshape(-1), ray)
            image = accumulate_along_rays(w, c.reshape(-1, 3), ray, 5)
            opacity = accumulate_along_rays(w, None, ray, 5)
            w, t, a = (x.view(5, 7) for x in (w, t, a))
        else:
            w, t, a = render_weight_from_density_dense(t_starts, t_ends, d)
            image, opacity = (w[..., None] * c).sum(-2), w.sum(-1, keepdim=True)
        loss = (image * torch.arange(15.0).view(5, 3)).sum() + opacity.square().sum() + (t * a).sum()
        results.append([w, t, a, image, opacity, *torch.autograd.grad(loss, [d, c])])
    for x, y in zip(*results):
        torch.testing.assert_close(x, y)


def test_rays_of_different_lengths_and_rays_without_samples():
    ray = torch.tensor([1, 1, 1, 4])
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert exclusive_sum(values, ray).tolist() == [0, 1, 3, 0]
    assert accumulate_along_rays(values, None, ray, 6)[:, 0].tolist() == [0, 6, 0, 0, 4, 0]
    empty = torch.zeros(0)
    weights, _, _ = render_weight_from_density(empty, empty, empty, torch.zeros(0, dtype=torch.long))
    assert accumulate_along_rays(weights, None, torch.zeros(0, dtype=torch.long), 3).tolist() == [[0], [0], [0]]


def outcome(backend, dtype, device):
    """Everything that compositing gives, and gradients of a loss on all of it in all that they can be taken in."""
    *values, ray, colors = uneven()
    t_starts, t_ends, density, colors = (x.to(device, dtype).requires_grad_() for x in (*values, colors))
    ray = ray.to(device)
    w, t, a = render_weight_from_density(t_starts, t_ends, density, ray, backend)
    w2, t2 = render_weight_from_alpha(a, ray, backend)
    image = accumulate_along_rays(w, colors, ray, 40, backend)
    opacity = accumulate_along_rays(w2, None, ray, 40, backend)
    factor = torch.linspace(-1, 1, ray.shape[0], device=device, dtype=dtype)
    loss = image.sin().sum() + opacity.square().sum() + (t * factor).sum() + (a * factor.flip(0)).sum() + (t2 * w).sum()
    grads = torch.autograd.grad(loss, [t_starts, t_ends, density, colors])
    return [x.detach().double().cpu() for x in (w, t, a, w2, t2, image, opacity, *grads)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients_match_float64(backend, device):
    need(backend, device)
    results = "weights transmittance alpha weights2 transmittance2 image opacity"
    names = f"{results} d/dt_starts d/dt_ends d/ddensity d/dcolors".split()
    got, expected = outcome(backend, torch.float32, device), outcome("torch", torch.float64, torch.device("cpu"))
    for name, x, y in zip(names, got, expected):
        error = (x - y).abs().max() / y.abs().max()
        assert error < 5e-6, f"{backend}: {name}: relative error {error:.2e}"


def test_reference_passes_gradcheck():
    t_starts, t_ends, density, ray, colors = (x[:20] for x in uneven())
    inputs = [x.clone().requires_grad_() for x in (t_starts, t_ends, density, colors)]

    def render(t_starts, t_ends, density, colors):
        weights, transmittance, alpha = render_weight_from_density(t_starts, t_ends, density, ray)
        return accumulate_along_rays(weights, colors, ray, 3), transmittance, alpha

    assert torch.autograd.gradcheck(render, inputs)
    assert torch.autograd.gradgradcheck(render, inputs)
    alpha = torch.linspace(0.05, 0.9, 20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: render_weight_from_alpha(a, ray), alpha)


@pytest.mark.parametrize("backend", BACKENDS)
def test_repeats_bit_for_bit_whatever_the_threads(backend):
    need(backend)
    ray = torch.arange(3000).repeat_interleave(7)
    depth = torch.rand(ray.shape[0], generator=torch.Generator().manual_seed(0))
    before, results = torch.get_num_threads(), []
    try:
        for n_threads in (1, 3):
            torch.set_num_threads(n_threads)
            x = depth.clone().requires_grad_()
            weights, t, _ = weights_of_depth(x, ray, backend)
            total = accumulate_along_rays(weights, t[:, None], ray, 3000, backend)
            results.append([weights, total, *torch.autograd.grad(total.square().sum(), x)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_on_its_ray(backend):
    need(backend)
    t_starts, t_ends, density, ray, colors = (x.float() if x.is_floating_point() else x for x in uneven())
    expected = accumulate_along_rays(
        render_weight_from_density(t_starts, t_ends, density, ray, backend)[0], colors, ray, 40, backend
    )
    broken = int(ray[50])
    density[50] = float("nan")
    got = accumulate_along_rays(
        render_weight_from_density(t_starts, t_ends, density, ray, backend)[0], colors, ray, 40, backend
    )
    others = torch.arange(40) != broken
    assert got[broken].isnan().all() and torch.allclose(got[others], expected[others], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("backend", ["torch", "warp"])
def test_second_derivatives(backend):
    need(backend)
    results = []
    for name, dtype in (("torch", torch.float64), (backend, torch.float32)):
        *_, density, ray, colors = uneven()
        depth, c = (0.1 * density).to(dtype).requires_grad_(), colors.to(dtype).requires_grad_()
        w, t, a = weights_of_depth(depth, ray, name)
        loss = (
            accumulate_along_rays(w, c, ray, 40, name).square().sum()
            + accumulate_along_rays(t * a, None, ray, 40, name).sum()
        )
        slopes = torch.autograd.grad(loss, [depth, c], create_graph=True)
        results.append([g.double() for g in torch.autograd.grad(sum(s.square().sum() for s in slopes), [depth, c])])
    for expected, got in zip(*results):
        assert (got - expected).abs().max() / expected.abs().max() < 5e-6


def test_wrong_arguments_are_refused_by_name():
    weights, ray = torch.ones(4), torch.tensor([0, 0, 1, 3])
    with pytest.raises(ValueError, match="ray_indices: expected 0 to 2.*got 0 to 3"):
        accumulate_along_rays(weights, None, ray, 3)
    with pytest.raises(ValueError, match="ray_indices"):
        accumulate_along_rays(weights, None, ray - 1, 5)
    with pytest.raises(UserError, match="backend.*cuda-magic"):
        weights_of_depth(weights, ray, "cuda-magic")
    with pytest.raises(UserError, match="warp.*float32"):
        weights_of_depth(weights.double(), ray, "warp")
    with pytest.raises(UserError, match="nerfacc.*not available"):
        weights_of_depth(weights, ray, "nerfacc")


def test_kernels_stay_inside_their_arrays():
    need("warp")
    stays_inside_its_arrays("""
from threestudio.ops.volume_rendering import weights_of_depth
from threestudio.ops.volume_rendering.warp_backend import accumulate_along_rays_warp
depth = torch.tensor([0.1, 0.2, float("inf"), float("nan"), 0.3, -1.0, 0.2]).requires_grad_()
ray = torch.tensor([-7, 0, 0, 0, 4, 4, 99])  # of 5 rays
weights, transmittance, alpha = weights_of_depth(depth, ray, "warp")
colors = torch.rand(7, 3, requires_grad=True)
total = accumulate_along_rays_warp(weights, colors, ray, 5)
opacity = accumulate_along_rays_warp(weights, None, ray, 5)
(total[4].sum() + opacity[4].sum()).backward()
assert depth.grad[4] != 0 and (total[1:4] == 0).all() and total[4].all()
""")


def test_infinite_and_huge_densities_leave_other_rays_alone():
    ray = torch.tensor([0, 0, 1, 1])
    density = torch.tensor([float("inf"), 1.0, 1e-3, 1e-3], requires_grad=True)
    t = torch.tensor([0.0, 1.0, 0.0, 1.0])
    weights, transmittance, _ = render_weight_from_density(t, t + 1, density, ray)
    assert weights[0] == 1 and weights[1] == 0 and transmittance[2] == 1
    torch.testing.assert_close(weights[3], torch.tensor(1e-3).neg().exp() * (1 - torch.tensor(1e-3).neg().exp()))
    weights.sum().backward()
    assert torch.isfinite(density.grad).all()


def test_many_samples_keep_their_small_weights():
    """A running total in float32 over 2 million samples would round these away."""
    n = 2**21
    ray = torch.arange(n // 64).repeat_interleave(64)
    density = torch.ones(n)
    density[: n // 2] = 900.0
    t = torch.zeros(n)
    weights, _, _ = render_weight_from_density(t, t + 1e-3, density, ray)
    last = accumulate_along_rays(weights, None, ray, n // 64)[-1, 0]
    torch.testing.assert_close(last, 1 - torch.tensor(-0.064).exp(), rtol=1e-5, atol=0)


def test_alpha_weights_match_density_weights():
    t_starts, t_ends, density, ray = packed()
    w, t, a = render_weight_from_density(t_starts.reshape(-1), t_ends.reshape(-1), density.reshape(-1), ray)
    w2, t2 = render_weight_from_alpha(a, ray)
    torch.testing.assert_close(w2, w)
    torch.testing.assert_close(t2, t)
