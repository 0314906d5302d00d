import pytest
import torch
from turboprop.distillation.timesteps import (
    sample_timesteps,
    shift_timesteps,
    square_root_annealed_percent,
    timestep_range,
)

CPU = torch.device("cpu")


def test_ranges_at_the_ends():
    assert timestep_range(0.02, 0.98, 1000) == (20, 980)
    assert timestep_range(0.5, 0.5, 1000) == (500, 500)
    assert timestep_range(0.0, 1.0, 1000) == (0, 999)


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.4), (-0.1, 0.5), (0.5, 1.1)])
def test_impossible_ranges(low, high):
    with pytest.raises(ValueError, match="expected 0 <= min <= max <= 1 at every step, got"):
        timestep_range(low, high, 1000)


def test_draws_are_uniform_with_both_ends():
    torch.manual_seed(0)
    draws = sample_timesteps(3, 7, 20000, CPU)
    counts = torch.bincount(draws, minlength=9)
    assert counts[:3].sum() == counts[8:].sum() == 0
    # 4000 each, standard deviation sqrt(20000 * 0.2 * 0.8) = 57
    assert (counts[3:8] - 4000).abs().max() < 5 * 57


def test_draws_are_each_samples_own_unless_shared():
    torch.manual_seed(0)
    assert sample_timesteps(0, 999, 16, CPU).unique().numel() > 8
    shared = sample_timesteps(0, 999, 16, CPU, shared=True)
    assert shared.shape == (16,) and shared.unique().numel() == 1


def test_the_shift_without_randomness():
    timesteps = torch.tensor([20, 119, 500, 980, 999])
    shifted = shift_timesteps(timesteps, 20, 1000, plus_ratio=0.1, plus_random=False)
    assert shifted.tolist() == [20, 119 + 9, 548, 999, 999]  # 980 + 96 is cut at the schedule's end


def test_the_random_shift_stays_below_its_bound_and_fills_it():
    torch.manual_seed(0)
    timesteps = torch.full((20000,), 500)
    shift = shift_timesteps(timesteps, 20, 1000, plus_ratio=0.1, plus_random=True) - timesteps
    assert shift.min() == 0 and shift.max() == 47
    counts = torch.bincount(shift, minlength=48)
    assert (counts - 20000 / 48).abs().max() < 6 * (20000 / 48) ** 0.5
    shared = shift_timesteps(timesteps, 20, 1000, plus_ratio=0.1, plus_random=True, shared=True)
    assert shared.unique().numel() == 1


def test_the_shift_stays_on_the_schedule():
    timesteps = torch.arange(1000)
    shifted = shift_timesteps(timesteps, 0, 1000, plus_ratio=5.0, plus_random=False)
    assert shifted.min() == 1 and shifted.max() == 999  # t = 0 goes to 1
    assert (shifted >= timesteps).all()
    before = shift_timesteps(torch.tensor([100]), 500, 1000, plus_ratio=0.1, plus_random=False)
    assert before.item() == 100  # T_min above t shifts nothing


def test_no_ratio_is_no_shift():
    timesteps = torch.arange(1, 1000)
    assert torch.equal(shift_timesteps(timesteps, 20, 1000, 0.0, True), timesteps)


def test_square_root_annealing_at_the_ends():
    assert square_root_annealed_percent(0.02, 0.98, 0.0) == 0.98
    assert square_root_annealed_percent(0.02, 0.98, 0.25) == pytest.approx(0.5)
    assert square_root_annealed_percent(0.02, 0.98, 1.0) == pytest.approx(0.02)
    assert square_root_annealed_percent(0.02, 0.98, 2.0) == pytest.approx(0.02)
