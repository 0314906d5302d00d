"""The gradient of one training step at a guessed state: the system's own step, computed ahead of the trainer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, List, Sequence

import torch
from torch import Tensor, nn

from threestudio.utils.errors import UserError
from threestudio.utils.keyed_random import seed_step

from .coming_steps import ComingBatches, finished_batches
from .engine.state import Evaluation, Gradients, Point, all_finite
from .executors import SlotExecutor
from .local_weights import LocalWeights
from .processes.accumulated import Accumulated
from .processes.exchange import Movable, moved
from .random_state import RandomState
from .system_buffers import SystemBuffers


@dataclass
class Slot:
    """What a system goes by while it computes a step ahead of the trainer."""

    step: int  # finished optimizer steps
    logs: List[tuple] = field(default_factory=list)  # (arguments, keyword arguments) of self.log

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        self.logs.append(((name, value.detach() if isinstance(value, Tensor) else value, *args), kwargs))


@dataclass
class StepRecord(Movable):
    """What a slot's training step leaves besides gradients, to be handed to the true step."""

    loss: Tensor  # []
    logs: List[tuple]  # as Slot's
    random_state: RandomState  # at the end
    not_finite: List[str]  # names of parameters whose gradients are not
    local_gradients: Gradients  # of local weights, where the true steps update them too; stays in its process

    def to(self, device: torch.device) -> "StepRecord":
        return replace(self, loss=self.loss.to(device), logs=moved(self.logs, device))


@dataclass
class RoundInputs:
    """What all slots of a round begin with."""

    batch_index: int  # the trainer's, of the base
    trained: Dict[str, nn.Parameter]  # of the state
    local: Dict[str, nn.Parameter]  # trained in this process alone, see local_weights.py
    weights: LocalWeights
    buffers: SystemBuffers
    executor: Callable[[Sequence[Point]], List[Evaluation]]  # for all slots of a window


class SlotEvaluator:
    """Computes the slots of a round with a system, which is as before afterwards."""

    inputs: RoundInputs  # of the round that runs, or ran last

    def __init__(self, system: Any, own: Any, batches: ComingBatches, accumulated: Accumulated) -> None:
        self._system = system
        self._own = own  # the system's hooks, without those that are mixed in
        self._batches = batches
        self._accumulated = accumulated
        self.executor: SlotExecutor  # of this process's own slots
        self.seconds: List[float] = []  # of each slot of the last round

    def evaluate_all(self, points: Sequence[Point]) -> List[Evaluation]:
        """The gradients of a window."""
        inputs = self.inputs
        real = {name: parameter.data for name, parameter in inputs.trained.items()}
        self._accumulated.begin_round()
        try:
            evaluations = inputs.executor(points)
            self.seconds = [evaluation.seconds for evaluation in evaluations]
            return evaluations
        finally:
            self._system.picard_slot = None
            for name, parameter in inputs.trained.items():
                parameter.data = real[name]
            inputs.weights.end_round()
            inputs.buffers.install(inputs.buffers.real)

    @torch.enable_grad()
    def evaluate(self, point: Point) -> Evaluation:
        """The gradient of one slot."""
        system, inputs = self._system, self.inputs
        ahead = point.step - system.trainer.global_step
        index, batch_index = finished_batches(system.trainer) + ahead, inputs.batch_index + ahead
        batch = self._batches.get(index, point.step)
        values = {**point.parameters, **inputs.weights.values()}
        bound = self.executor.bind({**inputs.trained, **inputs.local}, values)
        self.clear_gradients()
        inputs.buffers.install(inputs.buffers.real)
        inputs.buffers.install(inputs.buffers.slot_values(point.auxiliaries))
        system.picard_slot = Slot(point.step)
        before = inputs.buffers.marks()
        seed_step(system.run_seed, index)
        self._own.on_train_batch_start(batch, batch_index)
        system.picard_slot = slot = Slot(point.step)  # the true step runs that hook again, with what it logs
        loss = self._backward_of_step(batch, batch_index)
        random_state = RandomState.now()
        gradients = {name: bound[name].grad for name in inputs.trained}
        local = {name: bound[name].grad for name in inputs.local}
        finite = all_finite(gradients) and all_finite(local)
        local_gradients = inputs.weights.learn(point.step, local, finite)
        self.clear_gradients()
        not_finite = [] if finite else [name for name, value in gradients.items() if not all_finite({name: value})]
        record = StepRecord(loss, slot.logs, random_state, not_finite, local_gradients)
        changes, added = inputs.buffers.split(inputs.buffers.changes_since(before))
        self._accumulated.of_slot(point.step, added)
        return Evaluation(gradients, changes, finite, record)

    def _backward_of_step(self, batch: Any, batch_index: int) -> Tensor:
        with self._system.trainer.precision_plugin.train_step_context():
            output = self._own.training_step(batch, batch_index)
        loss = output["loss"] if isinstance(output, dict) else output
        if not isinstance(loss, Tensor):
            raise UserError("picard: expected a training step that returns its loss")
        self.executor.backward(loss)
        self._own.on_after_backward()
        return loss.detach()

    def clear_gradients(self) -> None:
        for parameter in self._system.parameters():
            parameter.grad = None
