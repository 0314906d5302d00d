import torch

from threestudio.ops.volume_rendering import (
    accumulate_along_rays,
    accumulate_along_rays_dense,
    exclusive_sum,
    ray_offsets,
    render_weight_from_alpha,
    render_weight_from_density,
    render_weight_from_density_dense,
)


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
    weights, transmittance, alpha = render_weight_from_density(edges[:-1], edges[1:], torch.full((n,), density).double(), ray)
    opacity = 1 - torch.exp(torch.tensor(-density * length, dtype=torch.float64))
    torch.testing.assert_close(weights.sum(), opacity)
    torch.testing.assert_close(transmittance, torch.exp(-density * edges[:-1]))
    torch.testing.assert_close(alpha, torch.full_like(alpha, 1 - torch.exp(torch.tensor(-density * length / n)).item()), rtol=1e-5, atol=0)
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
            image, opacity = accumulate_along_rays_dense(w, c), accumulate_along_rays_dense(w, None)
        loss = (image * torch.arange(15.0).view(5, 3)).sum() + opacity.square().sum() + (t * a).sum()
        results.append([w, t, a, image, opacity, *torch.autograd.grad(loss, [d, c])])
    for x, y in zip(*results):
        torch.testing.assert_close(x, y)


def test_rays_of_different_lengths_and_rays_without_samples():
    ray = torch.tensor([1, 1, 1, 4])
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert exclusive_sum(values, ray).tolist() == [0, 1, 3, 0]
    assert ray_offsets(ray, 6).tolist() == [0, 0, 3, 3, 3, 4, 4]
    assert accumulate_along_rays(values, None, ray, 6)[:, 0].tolist() == [0, 6, 0, 0, 4, 0]
    empty = torch.zeros(0)
    weights, _, _ = render_weight_from_density(empty, empty, empty, torch.zeros(0, dtype=torch.long))
    assert accumulate_along_rays(weights, None, torch.zeros(0, dtype=torch.long), 3).tolist() == [[0], [0], [0]]


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
