"""Local weights: they train in each process by themselves, and are no part of the state that rounds move along.

Variational score distillation asks a second teacher for the score of the renders, and trains it on each step's renders
(ProlificDreamer, arXiv 2305.16213). DreamPropeller (arXiv 2311.17082; its option 2) leaves one such teacher to each
device, trains it on the states that the device happens to get, after the gradient, and exchanges none. The gradient of
a step is then no function of the state alone, and the run step by step is no fixed point.

One process computes its slots in the order of the steps, so the weights can follow: within a round they move on from
slot to slot, as they would from step to step, and are then put back; the true steps make the updates of accepted slots
again, by the trainer's optimizer. So a slot that is not accepted has taught nothing, and with a threshold of zero the
run is the run step by step. Several processes keep what all their slots have taught: the one that computes the end of
the windows, which is seldom accepted, would else learn nothing.
"""

from __future__ import annotations

from typing import Dict, Sequence, Set

import torch
from torch import nn

from .contract import LearnsFromRenders
from .engine.state import Gradients, State, Tensors
from .engine.updates import OptimizerUpdate


def local_weight_names(module: nn.Module) -> Set[str]:
    """The full names of the parameters that are no part of the state."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, owner in module.named_modules()
        if isinstance(owner, LearnsFromRenders) and owner.learns_from_renders
        for name, _ in owner.named_parameters()
    }


class LocalWeights:
    """The local weights of one process during a round."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,  # of the trainer; has the weights' moments
        update: OptimizerUpdate,  # of the groups of these weights
        parameters: Dict[str, nn.Parameter],
        keeps_all: bool,  # what every slot has taught; else that is for the true steps, see `learn`
    ) -> None:
        self._optimizer = optimizer
        self._update = update
        self._parameters = parameters
        self._keeps_all = keeps_all
        self._real = {name: parameter.data for name, parameter in parameters.items()}
        moments = {name: optimizer.state[p] for name, p in parameters.items() if p in optimizer.state}
        self._moving = State(0, self._real, {}, moments).clone()

    def values(self) -> Tensors:
        """For the next slot: the weights as the slots before it have left them."""
        return self._moving.parameters

    def learn(self, step: int, gradients: Gradients, finite: bool) -> Gradients:
        """After the slot of `step`. Returns the gradients that its true step has to give the optimizer."""
        if not gradients:
            return {}
        self._moving.step = step
        self._update(self._moving, gradients if finite else None)
        return {} if self._keeps_all else gradients

    def end_round(self) -> None:
        """The system has its own weights again."""
        for name, parameter in self._parameters.items():
            parameter.data = self._real[name]
            if self._keeps_all:
                parameter.data.copy_(self._moving.parameters[name])
                if name in self._moving.moments:
                    self._optimizer.state[parameter] = self._moving.moments[name]


def local_weights_note(groups: Sequence[Sequence[str]], processes: int) -> str:
    """What a user should know of local weights at the start of a run."""
    count = sum(len(names) for names in groups)
    note = f"Picard: {count} weights learn beside the state (VSD)"
    if processes == 1:
        return f"{note}, from the slots that are accepted: at a threshold of 0 the run is the run step by step"
    return (
        f"{note}, in each of {processes} processes from its own slots, and are not exchanged: the run step by step is "
        "no fixed point, and a resumed run begins with rank 0's in all processes; learning_teacher=state is exact"
    )


def split_groups(groups: Sequence[Sequence[str]], local: Set[str]) -> tuple:
    """The groups of the state's parameters, and those of the local weights."""
    state = [[name for name in names if name not in local] for names in groups]
    return state, [[name for name in names if name in local] for names in groups]
