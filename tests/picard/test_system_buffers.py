"""What of a step's work on buffers is done once: in the slot, and not at the true state again."""

from torch import nn
from turboprop.picard.system_buffers import buffers_left_alone

import threestudio
from tests.picard.runs import fit
from threestudio.models.estimators import OccupancyGridEstimator


class Says(nn.Module):
    update_step_changes_buffers_alone = True
    calls = 0

    def update_step(self, *args):
        self.calls += 1


class Inherits(Says):
    """Has nothing of its own to update."""


class Overrides(Says):
    """Of what it does here nothing is said."""

    def update_step(self, *args):
        self.calls += 10


def test_an_update_is_left_out_where_its_own_class_says_so():
    system = nn.ModuleList([Says(), Inherits(), Overrides(), nn.Linear(1, 1)])
    with buffers_left_alone(system):
        for part in system[:3]:
            part.update_step(0, 1)
    assert [part.calls for part in system[:3]] == [0, 0, 10]
    for part in system[:3]:
        part.update_step(0, 1)
    assert [part.calls for part in system[:3]] == [1, 1, 20]


def test_an_occupancy_grid_is_looked_at_once_a_slot(tmp_path, monkeypatch):
    assert threestudio.find("nerf-volume-renderer").update_step_changes_buffers_alone
    counted, update = [], OccupancyGridEstimator.update_every_n_steps

    def counting(self, step, occupancy, **options):
        def looked_at(points):
            counted.append(step)
            return occupancy(points)

        update(self, step, looked_at, **options)

    monkeypatch.setattr(OccupancyGridEstimator, "update_every_n_steps", counting)
    fit("nerf", tmp_path, picard=("window=1",), steps=18)
    assert counted == [0, 16]
