"""`executor: experimental_batched`: the slots of a window with one call of the teacher for all, and one backward pass.

Each slot is the system's own training step. A slot that asks the teacher, or that has its loss, waits until all others
are as far (DreamPropeller, arXiv 2311.17082, has a device for each slot). Where a network of a small batch leaves a
device half idle, a window costs less than its steps one after another. All slots' graphs are alive at once, so memory
grows with the window.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch
from torch import Tensor, nn

from ...teachers.contract import Teacher
from ..components import reachable_components
from ..engine.state import Evaluation, Point, Tensors
from ..random_state import RandomState
from .context import AttributeSnapshot, ContextSnapshot, TorchModes
from .joined_teacher import TeacherCall, answer_calls, joined_teacher
from .scheduler import CooperativeScheduler


class Backward:
    """A slot's backward pass; all are run as one, when every slot has its loss."""

    key = "backward"
    patient = True

    def __init__(self, loss: Tensor) -> None:
        self.loss = loss  # []


class Batched:
    """Slots together."""

    def __init__(self, system: nn.Module, evaluate: Callable[[Point], Evaluation]) -> None:
        self._system = system
        self._evaluate = evaluate
        self._scheduler = CooperativeScheduler(answer, ContextSnapshot.restore, self._context)

    def __call__(self, points: Sequence[Point]) -> List[Evaluation]:
        self._components = reachable_components(self._system)
        self._device_types = sorted({"cpu", next(iter(points[0].parameters.values())).device.type})
        places = frozen_teachers(self._components)
        joined = {id(teacher): joined_teacher(teacher, self._ask) for _, _, teacher in places}
        for component, name, teacher in places:
            vars(component)[name] = joined[id(teacher)]
        before = self._context()
        try:
            return self._scheduler.run([partial(self._evaluate, point) for point in points], before)
        finally:
            # What modules have found out meanwhile and keep, such as tables made on first use, stays.
            before.attributes.restore_tensors()
            before.random_state.restore()
            before.modes.restore()
            for component, name, teacher in places:
                vars(component)[name] = teacher

    def bind(self, trained: Dict[str, nn.Parameter], values: Tensors) -> Dict[str, nn.Parameter]:
        """Gives the slot that runs parameters of its own, with these values, in the place of the system's."""
        own = {name: nn.Parameter(values[name], parameter.requires_grad) for name, parameter in trained.items()}
        by_id = {id(parameter): own[name] for name, parameter in trained.items()}
        for module in (component for component in self._components if isinstance(component, nn.Module)):
            for key, parameter in module._parameters.items():
                module._parameters[key] = by_id.get(id(parameter), parameter)
        return own

    def backward(self, loss: Tensor) -> None:
        self._scheduler.ask(Backward(loss))

    def _ask(self, method: Callable[..., Tensor], arguments: Sequence[Any]) -> Tensor:
        return self._scheduler.ask(TeacherCall(method, arguments, TorchModes.now(self._device_types)))

    def _context(self) -> ContextSnapshot:
        modes = TorchModes.now(self._device_types)
        return ContextSnapshot(AttributeSnapshot(self._components), RandomState.now(), modes)


def answer(requests: Sequence[Any]) -> Sequence[Any]:
    if isinstance(requests[0], TeacherCall):
        return answer_calls(requests)
    # Several roots, not their sum: a loss that is not finite stays its slot's own.
    torch.autograd.backward([request.loss for request in requests])
    return [None] * len(requests)


def frozen_teachers(components: Sequence[Any]) -> List[Tuple[Any, str, Teacher]]:
    """Where components hold a teacher that learns nothing: (component, name of the attribute, teacher).

    One that learns is asked by each slot by itself, with weights of its own.
    """
    return [
        (component, name, value)
        for component in components
        for name, value in vars(component).items()
        if isinstance(value, Teacher) and not _learns(value)
    ]


def _learns(teacher: Teacher) -> bool:
    return isinstance(teacher, nn.Module) and any(parameter.requires_grad for parameter in teacher.parameters())
