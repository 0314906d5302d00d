"""The true state of a run in several processes: each moves its shard on, and whole tensors are there where asked for.

Between two gatherings a system's own parameters are those of the last one, and the trainer's optimizer has no moments
of them: no rank has them whole. Gathered are parameters before a validation, and parameters and moments for a
checkpoint, where a module's structure may change, at the end of an epoch, and at the end of training. What is changed
there is taken over into the shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from threestudio.utils.base import Updateable

from ..contract import ReadsParameters
from ..engine.state import Gradients, State, Tensors
from ..engine.updates import OptimizerUpdate, group_settings
from ..executors import check_agreement
from .communication import Communication
from .exchange import gather_moments, gather_parameters
from .sharding import Sharding


class Shards:
    """This rank's shard of the trained parameters and of their moments in the trainer's optimizer."""

    sharding: Sharding

    def __init__(
        self,
        communication: Communication,
        optimizer: torch.optim.Optimizer,
        groups: Sequence[Sequence[str]],  # names of the sharded parameters of each of the optimizer's groups
    ) -> None:
        self.communication = communication
        self._optimizer = optimizer
        self._update = OptimizerUpdate(optimizer, groups, lambda step: group_settings(optimizer))
        self._trained: dict[str, nn.Parameter] = {}
        self._state: State | None = None
        self._parameters_whole = self._moments_whole = True

    def base(self, trained: dict[str, nn.Parameter], step: int, auxiliaries: Tensors) -> State:
        """This rank's part of the true state, for a round; it stays the same object until the next one."""
        same = self._trained.keys() == trained.keys() and all(self._trained[n] is p for n, p in trained.items())
        if not same:
            self._cut(trained, step)
        state = self._current(step)
        state.step, state.auxiliaries = step, auxiliaries
        return state

    def advance(self, step: int, gradients: Gradients | None) -> None:
        """The update after `step` finished ones, of this rank's shard; None: it is left out."""
        self._update(self._current(step), gradients)

    @torch.no_grad()
    def gather_parameters(self) -> None:
        """The system has the true parameters, whole. All ranks must call."""
        if self._parameters_whole:
            return
        whole = gather_parameters(self.communication, self.sharding, self._state.parameters)
        for name, parameter in self._trained.items():
            parameter.data.copy_(whole[name])
        self._parameters_whole = True

    def gather(self) -> None:
        """The system has the true parameters, and the optimizer their moments. All ranks must call."""
        self.gather_parameters()
        if self._moments_whole:
            return
        moments = gather_moments(self.communication, self.sharding, self._state.moments)
        for name, parameter in self._trained.items():
            if name in moments:
                self._optimizer.state[parameter] = moments[name]
        self._moments_whole = True

    def _cut(self, trained: dict[str, nn.Parameter], step: int) -> None:
        if not (self._parameters_whole and self._moments_whole):
            raise RuntimeError(
                f"picard: at step {step} parameters were exchanged for others, which no module's "
                "next_structure_change had announced; several processes need that"
            )
        whole = {name: parameter.data for name, parameter in trained.items()}
        check_agreement(self.communication, whole, step)
        self.sharding = Sharding(whole, self.communication.size)
        self._trained, self._state = dict(trained), None

    @torch.no_grad()
    def _current(self, step: int) -> State:
        """The shard, with what is whole taken over."""
        if self._state is None:
            self._state = State(step, {})
        rank = self.communication.rank
        if self._parameters_whole:
            whole = {name: parameter.data for name, parameter in self._trained.items()}
            self._state.parameters = {name: part.clone() for name, part in self.sharding.part(whole, rank).items()}
        if self._moments_whole:
            state = self._optimizer.state
            moments = {name: state.pop(parameter) for name, parameter in self._trained.items() if parameter in state}
            self._state.moments = self.sharding.part_of_moments(moments, rank)
        self._parameters_whole = self._moments_whole = False
        return self._state


def reads_parameters(part: Any) -> bool:
    """Whether a part of a system, or a callback, may look at parameters after each true step."""
    if isinstance(part, ReadsParameters):
        return part.reads_parameters
    return isinstance(part, Updateable) and type(part).update_step_end is not Updateable.update_step_end
