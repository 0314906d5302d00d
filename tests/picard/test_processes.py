"""Whole runs in several processes, each with a shard of the state: the same as in one process."""

import pytest
import torch
from turboprop.picard.contract import ReadsParameters
from turboprop.picard.processes.shards import reads_parameters

from tests.picard.nan_guidance import NAN_GUIDANCE
from tests.picard.processes import fit_in_processes, fit_under_torchrun
from tests.picard.pulled_background import PulledBackground
from tests.picard.runs import fit, logged, state_of
from tests.saved_states import assert_same
from threestudio.utils.base import BaseModule

LAST = "fit/run/ckpts/last.ckpt"


@pytest.mark.parametrize(
    "kind, processes",
    [("gaussians", 2)] + [pytest.param(*case, marks=pytest.mark.slow) for case in (("gaussians", 3), ("sdf", 2))],
)
def test_several_processes_end_as_one(kind, processes, tmp_path):
    """Through cloning, splitting, removal and resets, for which all processes gather the parameters."""
    keys = ("window=4", "threshold=0.5", "check_every=1")
    alone = fit(kind, tmp_path / "alone", picard=keys)
    together = fit_in_processes(kind, tmp_path / "together", picard=keys, processes=processes)
    assert_same(state_of(together), state_of(alone))
    assert together["picard"] == alone["picard"]


@pytest.mark.parametrize("kind", ["nerf", pytest.param("gaussians", marks=pytest.mark.slow)])
@pytest.mark.parametrize("before, after", [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_a_run_is_resumed_by_another_number_of_processes(kind, before, after, tmp_path):
    """With validations between, which see the true parameters."""
    extra = ("checkpoint.every_n_train_steps=5", "trainer.val_check_interval=3", "trainer.check_val_every_n_epoch=null")
    keys = ("window=4", "threshold=2")
    whole = fit(kind, tmp_path / "whole", *extra, picard=keys, steps=13)
    resumed = None
    for processes, steps in ((before, 10), (after, 13)):
        resume = [] if resumed is None else [f"resume={tmp_path}/part/{LAST}"]
        run = fit if processes == 1 else fit_in_processes
        resumed = run(kind, tmp_path / "part", *extra, *resume, picard=keys, steps=steps)
    assert_same(state_of(resumed), state_of(whole))
    pictures = [sorted((tmp_path / name / "fit/run/save").glob("*.png")) for name in ("whole", "part")]
    validations = [[path for path in found if path.name.startswith("it")] for found in pictures]
    assert [path.name for path in validations[0]] == [path.name for path in validations[1]] and validations[0]
    for one, other in zip(*validations):
        assert one.read_bytes() == other.read_bytes()


def test_a_gradient_that_is_not_finite_is_left_out_by_all(tmp_path):
    keys = ("window=5", "threshold=1e30")
    alone = fit("dmtet", tmp_path / "alone", NAN_GUIDANCE, picard=keys, steps=11)
    together = fit_in_processes("dmtet", tmp_path / "together", NAN_GUIDANCE, picard=keys, steps=11)
    assert_same(state_of(together), state_of(alone))
    assert logged(tmp_path / "together", "train/skipped_steps")[-1] == 1


def test_what_reads_parameters_after_a_step_sees_the_true_ones(tmp_path):
    background = ("system.background_type=test-pulled-background", "system.background.learned=true")
    plain = fit("nerf", tmp_path / "plain", *background, steps=7)
    keys = ("window=3", "threshold=0")
    together = fit_in_processes("nerf", tmp_path / "together", *background, picard=keys, steps=7)
    assert_same(state_of(together), state_of(plain))


def test_what_is_taken_to_read_parameters():
    class Says(BaseModule):
        reads_parameters = False

        def update_step_end(self, epoch, global_step):
            """Reads none."""

    assert not reads_parameters(BaseModule()) and not reads_parameters(torch.nn.Linear(1, 1))
    assert reads_parameters(PulledBackground({"learned": True}))
    assert isinstance(Says(), ReadsParameters) and not reads_parameters(Says())


def test_a_launch_under_torchrun_ends_as_one_process(tmp_path):
    keys = ("window=4", "threshold=0.5", "check_every=1")
    alone = fit("nerf", tmp_path / "alone", picard=keys, steps=9)
    together = fit_under_torchrun("nerf", tmp_path / "together", picard=keys, steps=9)
    assert_same(state_of(together), state_of(alone))
    assert together["picard"] == alone["picard"]
