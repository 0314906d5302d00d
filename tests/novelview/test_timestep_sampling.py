"""Timestep samplers against closed forms and the figures that are known of Efficient-3DiM's."""

import math

import pytest
import torch
from turboprop.novelview.timestep_sampling import (
    TimestepSampling,
    interpolated_noise_shift,
    logit_normal_quantile,
    min_snr_weight,
    signal_to_noise_ratio,
    timesteps_of,
    truncated_normal_quantile,
)
from turboprop.teachers.noise_schedule import scaled_linear_alphas_cumprod

T = 1000
GRID = (torch.arange(2_000_000, dtype=torch.float64) + 0.5) / 2_000_000
PAPER = TimestepSampling("truncated_normal", 1000.0, 200.0)


def phi(x: float) -> float:
    return 0.5 * (1.0 + math.erf(x / math.sqrt(2.0)))


def test_the_papers_distribution_has_its_exact_figures():
    t = truncated_normal_quantile(GRID, T, 1000.0, 200.0)
    assert float(t.mean()) == pytest.approx(840.4, abs=0.05)
    # the half-normal below its mean: 1000 - 200 sqrt(2 / pi), but for the 6e-7 that lie below 0
    assert float(t.mean()) == pytest.approx(1000 - 200 * math.sqrt(2 / math.pi), abs=0.01)
    known = {200: 6e-5, 400: 0.0027, 500: 0.0124, 600: 0.0455, 700: 0.134, 800: 0.317, 900: 0.617}
    for below, share in known.items():
        exact = (phi((below - 1000) / 200) - phi(-5)) / (0.5 - phi(-5))
        assert float((t < below).double().mean()) == pytest.approx(exact, abs=1e-6)
        assert exact == pytest.approx(share, rel=0.06 if below == 200 else 0.01)


@pytest.mark.parametrize("mean,std", [(1000.0, 200.0), (500.0, 200.0), (300.0, 1000.0), (1200.0, 150.0)])
def test_quantiles_invert_the_distribution_function(mean, std):
    u = torch.tensor([1e-6, 0.01, 0.3, 0.5, 0.9, 0.9999], dtype=torch.float64)
    t = truncated_normal_quantile(u, T, mean, std)
    low, high = phi((0 - mean) / std), phi((T - mean) / std)
    back = [(phi((float(x) - mean) / std) - low) / (high - low) for x in t]
    assert back == pytest.approx(u.tolist(), rel=1e-6)


def test_timesteps_are_renormalised_not_clipped():
    t = timesteps_of(GRID, T, PAPER)
    assert t.dtype == torch.int64 and int(t.min()) < 60 and int(t.max()) == 999
    assert float((t == 999).double().mean()) == pytest.approx(2 * (0.5 - phi(-1 / 200)), rel=1e-3)  # clipped: 0.5


def test_uniform_is_uniform():
    counts = torch.bincount(timesteps_of(GRID, T, TimestepSampling("uniform")), minlength=T)
    assert counts.tolist() == [2000] * T


def test_a_mixture_has_its_shares():
    mixed = timesteps_of(GRID, T, TimestepSampling("truncated_normal", 1000.0, 200.0, uniform_share=0.2))
    below = float((mixed < 400).double().mean())
    assert below == pytest.approx(0.2 * 0.4 + 0.8 * 0.0026992, abs=1e-5)
    only = timesteps_of(GRID, T, TimestepSampling("truncated_normal", uniform_share=1.0))
    assert torch.equal(only, timesteps_of(GRID, T, TimestepSampling("uniform")))


def test_logit_normal():
    t = logit_normal_quantile(torch.tensor([0.5, phi(1.0)], dtype=torch.float64), T, 0.5, 2.0)
    assert t.tolist() == pytest.approx([T / (1 + math.exp(-0.5)), T / (1 + math.exp(-2.5))])
    inside = timesteps_of(GRID, T, TimestepSampling("logit_normal", 0.0, 1.0))
    assert float((inside < 500).double().mean()) == pytest.approx(0.5, abs=1e-5)


def test_the_ends_of_the_draw_stay_inside():
    ends = torch.tensor([0.0, 1.0 - 2**-24, 1.0])
    for name in ("uniform", "truncated_normal", "logit_normal"):
        t = timesteps_of(ends, T, TimestepSampling(name, 0.0 if name == "logit_normal" else 1000.0, 1.0))
        assert int(t.min()) >= 0 and int(t.max()) <= T - 1


def test_impossible_samplers_are_refused():
    for sampling, message in (
        (TimestepSampling("gaussian"), "timesteps.sampler: expected one of uniform, .*got 'gaussian'"),
        (TimestepSampling(std=0.0), "timesteps.std: expected a number above 0, got 0.0"),
        (TimestepSampling(mean=5000.0, std=10.0), "a share of 1e-09 or more of the Gaussian .* within 0 to 1000"),
        (TimestepSampling(mean=-2000.0), "a share of 1e-09 or more of the Gaussian .* mean -2000 and std 200"),
        (TimestepSampling(uniform_share=1.5), "timesteps.uniform_share: .*got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            sampling.check()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_the_clean_sample_alike_in_all_prediction_types(kind):
    abar = scaled_linear_alphas_cumprod()
    t = torch.tensor([10, 300, 700, 990])
    ratio = signal_to_noise_ratio(abar[t])
    # an error d of the clean sample is one of a / s d of epsilon, and of d / s of v
    as_sample = {"epsilon": abar[t] / (1 - abar[t]), "v_prediction": 1 / (1 - abar[t]), "sample": torch.ones(4)}[kind]
    weighted = min_snr_weight(abar, t, kind, 5.0) * as_sample
    torch.testing.assert_close(weighted, ratio.clamp(max=5.0))


def test_the_noise_shift_is_by_eight_at_the_end_and_nothing_at_the_start():
    abar = scaled_linear_alphas_cumprod()
    shifted = interpolated_noise_shift(abar, 8.0)
    quotient = signal_to_noise_ratio(abar) / signal_to_noise_ratio(shifted)
    torch.testing.assert_close(quotient.log2(), torch.linspace(0, 3, T, dtype=torch.float64), atol=1e-8, rtol=1e-8)
    assert bool((shifted.diff() < 0).all())
    torch.testing.assert_close(interpolated_noise_shift(abar, 1.0), abar)
    with pytest.raises(ValueError, match="noise_shift: expected a number above 0, got 0"):
        interpolated_noise_shift(abar, 0)
