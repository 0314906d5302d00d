import math

import pytest
import torch
import torch.nn.functional as F

from threestudio.ops.spherical_harmonics import real_spherical_harmonics


def directions(n=64):
    return F.normalize(torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1)


def test_first_bands_by_hand():
    x, y, z = directions().unbind(-1)
    got = real_spherical_harmonics(directions(), 3)
    a, b = math.sqrt(3 / (4 * math.pi)), math.sqrt(15 / (4 * math.pi))
    expected = [
        torch.full_like(x, 0.5 / math.sqrt(math.pi)),
        -a * y, a * z, -a * x,
        b * x * y, -b * y * z, math.sqrt(5 / (16 * math.pi)) * (3 * z * z - 1), -b * x * z, b / 2 * (x * x - y * y),
    ]  # fmt: skip
    torch.testing.assert_close(got, torch.stack(expected, -1))


@pytest.mark.parametrize("degree", [1, 4, 8])
def test_agrees_with_scipy(degree):
    scipy_special = pytest.importorskip("scipy.special")
    d = directions()
    theta = torch.acos(d[:, 2]).numpy()
    phi = torch.atan2(d[:, 1], d[:, 0]).numpy()
    got = real_spherical_harmonics(d, degree)
    assert got.shape == (64, degree**2)
    for l in range(degree):
        for m in range(-l, l + 1):
            y = scipy_special.sph_harm_y(l, abs(m), theta, phi)  # has the phase (-1)^m
            value = y.real if m == 0 else math.sqrt(2) * (y.real if m > 0 else y.imag)
            torch.testing.assert_close(got[:, l * l + l + m], torch.from_numpy(value))


def test_orthonormal_over_the_sphere():
    # Gauss-Legendre in z and equal angles integrate products of these bands exactly.
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(8)
    z, w = torch.from_numpy(nodes), torch.from_numpy(weights)
    phi = torch.arange(16, dtype=torch.float64) * (2 * math.pi / 16)
    s = (1 - z * z).sqrt()[:, None]
    d = torch.stack([s * phi.cos(), s * phi.sin(), z[:, None].expand(-1, 16)], -1).reshape(-1, 3)
    y = real_spherical_harmonics(d, 4)
    gram = torch.einsum("ni,nj,n->ij", y, y, w.repeat_interleave(16) * (2 * math.pi / 16))
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), atol=1e-12, rtol=0)
