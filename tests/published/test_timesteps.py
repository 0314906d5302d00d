"""Which timesteps a step looks at, in numbers of the published rules."""

import pytest
import torch
from turboprop.distillation.timesteps import (
    sample_timesteps,
    schedule_start,
    shift_timesteps,
    square_root_annealed_percent,
    timestep_range,
)
from turboprop.teachers import GaussianMixtureTeacher, TextCondition
from turboprop.teachers.low_rank import CameraCondition

import threestudio

CPU = torch.device("cpu")


def guidance(name: str, **cfg):
    """A guidance with a teacher of 1,000 timesteps."""
    return threestudio.find(name)(cfg, teacher=GaussianMixtureTeacher(torch.zeros(1, 1, 2, 2), [1.0]))


def test_the_range_is_inclusive_at_both_ends():
    assert timestep_range(0.02, 0.98, 1000) == (20, 980)
    drawn = sample_timesteps(20, 23, 2000, CPU)
    assert drawn.unique().tolist() == [20, 21, 22, 23]
    counts = drawn.bincount()[20:]
    assert (counts - 500).abs().max() < 5 * (2000 * 0.25 * 0.75) ** 0.5


def test_scaledreamers_window_slides_with_a_constant_width():
    """0.5 to 0.98 of the schedule at first, 0.02 to 0.5 at the end of 50,000 steps."""
    asd = guidance(
        "stable-diffusion-asynchronous-score-distillation-guidance",
        min_step_percent=[0, 0.5, 0.02, 50000],
        max_step_percent=[0, 0.98, 0.5, 50000],
    )
    for step, expected in {0: (500, 980), 25000: (260, 740), 50000: (20, 500), 60000: (20, 500)}.items():
        asd.do_update_step(0, step)
        assert (asd.schedule.min_step, asd.schedule.max_step) == expected


def test_asds_shift():
    """dt is eta (t - T_min), no more than leads to the last timestep, and with plus_random a share of that."""
    t = torch.tensor([20, 500, 980, 10])
    assert shift_timesteps(t, 20, 1000, 0.1, False).tolist() == [20, 548, 999, 10]
    assert shift_timesteps(torch.tensor([0]), 0, 1000, 0.1, False).tolist() == [1]  # t' is at least 1
    torch.manual_seed(0)
    drawn = shift_timesteps(torch.full((20000,), 500), 20, 1000, 0.1, True) - 500
    assert drawn.min() == 0 and drawn.max() == 47  # the whole part of u * 48, u < 1
    assert drawn.float().mean().item() == pytest.approx(23.5, abs=5 * 13.9 / 20000**0.5)


def test_vsds_adapters_train_at_all_timesteps():
    """ProlificDreamer's U(0, 1): from the first timestep to the last, whatever range the scene looks at."""
    seen = []

    class Recording(GaussianMixtureTeacher):
        def denoising_loss(self, latents, noise, timesteps, condition):
            seen.append(timesteps)
            return latents.sum()

    teachers = [kind(torch.zeros(1, 1, 2, 2), [1.0]) for kind in (GaussianMixtureTeacher, Recording)]
    narrow = {"min_step_percent": 0.5, "max_step_percent": 0.5, "lora_n_timestamp_samples": 20000}
    vsd = threestudio.find("turboprop-vsd-guidance")(narrow, *teachers)
    torch.manual_seed(0)
    vsd.training_loss(torch.zeros(1, 1, 2, 2), CameraCondition(TextCondition(torch.zeros(1, 1, 1)), torch.ones(1, 16)))
    assert seen[0].shape == (20000,) and (seen[0].min(), seen[0].max()) == (0, 999)
    assert seen[0].float().mean().item() == pytest.approx(499.5, abs=5 * 288.7 / 20000**0.5)


def test_hifas_annealed_timestep():
    """HiFA, equation 10: t_max - (t_max - t_min) sqrt(progress)."""
    for progress, expected in {0.0: 0.98, 0.25: 0.5, 0.81: 0.116, 1.0: 0.02}.items():
        assert square_root_annealed_percent(0.02, 0.98, progress) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["turboprop-sds-guidance", "stable-diffusion-guidance"])
def test_a_scheduled_maximum_gives_the_annealed_timestep_its_start_alone(name):
    """t_max is 0.98, not the schedule's 0.74 of that step: 0.3 + 0.68 (1 - sqrt(1/4)) = 0.64 (0.63999...), not 0.52."""
    module = guidance(
        name, sqrt_anneal=True, trainer_max_steps=10000, min_step_percent=0.3, max_step_percent=[0, 0.98, 0.5, 5000]
    )
    module.do_update_step(0, 2500)
    assert module.schedule.min_step == module.schedule.max_step == 639
    assert [schedule_start(value) for value in (0.9, [0.8, 0.5, 100], [0, 0.7, 0.5, 100])] == [0.9, 0.8, 0.7]
    assert schedule_start([0, 0.6, 0.5, 100, 0.2, 200]) == 0.6


def test_sdis_annealed_timestep():
    """Linear in the run's progress, from the schedule's start too."""
    percents = {"min_step_percent": 0.25, "max_step_percent": [0, 0.875, 0.5, 100]}
    module = guidance("stable-diffusion-sdi-guidance", trainer_max_steps=10000, **percents)
    for step, expected in {0: 875, 2500: 718, 10000: 250}.items():
        module.do_update_step(0, step)
        assert module.schedule.min_step == module.schedule.max_step == expected
