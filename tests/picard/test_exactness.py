"""Runs by Picard iterations against runs step by step: the same bit for bit where they claim to be."""

import pytest

from tests.picard.runs import KINDS, fit, state_of
from tests.saved_states import assert_same


@pytest.fixture(scope="module")
def sequential(tmp_path_factory):
    made: dict = {}

    def run(kind: str) -> dict:
        if kind not in made:
            made[kind] = fit(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_a_threshold_of_zero_is_the_run_step_by_step(kind, sequential, tmp_path):
    """Through updates of the occupancy grid, schedules, and changes of the number of Gaussians."""
    run = fit(kind, tmp_path, picard=("threshold=0", "window=3"))
    assert_same(state_of(run), state_of(sequential(kind)))
    assert all(row[2] >= 1 for row in run["picard"]["history"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_of_one_is_the_run_step_by_step(kind, sequential, tmp_path):
    run = fit(kind, tmp_path, picard=("window=1",))
    assert_same(state_of(run), state_of(sequential(kind)))
    assert len(run["picard"]["history"]) == 20


def test_fused_optimizers_are_as_step_by_step_too(tmp_path):
    """On a processor they are far faster where parameters are millions."""
    args = "system.optimizer.args.fused=true"
    run = fit("nerf", tmp_path / "picard", args, picard=("threshold=0", "window=3"))
    assert_same(state_of(run), state_of(fit("nerf", tmp_path / "plain", args)))
    assert run["optimizer_states"][0]["param_groups"][0]["fused"] is True
