"""`executor: batched`: the slots of a window on one device, with one call of the teacher for all, and one backward.

Each slot is the system's own training step. They run in turns up to where they meet: a slot that asks the teacher, or
that has its loss, waits until all others are as far (DreamPropeller, arXiv 2311.17082, has a device for each slot).
Where a network of a small batch leaves a device half idle, a window costs less than its steps one after another.
All slots' graphs are alive at once, so memory grows with their number.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch
from torch import Tensor, nn

from ...teachers.contract import Teacher
from ..engine.state import Evaluation, Point, Tensors
from ..keys import RandomState
from .joined_teacher import JoinedTeacher, TeacherCall, answer_calls
from .surroundings import Attributes, Modes, Surroundings, parts_of
from .turns import Turns


class Backward:
    """Of a slot's loss; all are run as one, when every slot has its loss."""

    key = "backward"
    patient = True

    def __init__(self, loss: Tensor) -> None:
        self.loss = loss


class Batched:
    """Slots together, at most `slots` at once; 0: all of the window."""

    def __init__(self, system: nn.Module, evaluate: Callable[[Point], Evaluation], slots: int = 0) -> None:
        self._system = system
        self._evaluate = evaluate
        self._slots = slots
        self._turns = Turns(answer, Surroundings.restore, self._surroundings)

    def __call__(self, points: Sequence[Point]) -> List[Evaluation]:
        size = self._slots or len(points)
        found: List[Evaluation] = []
        for start in range(0, len(points), size):
            found += self._together(points[start : start + size])
        return found

    def teachers(self) -> List[Teacher]:
        """Whose calls by several slots are one."""
        return [teacher for _, _, teacher in teachers_of(parts_of(self._system))]

    def _together(self, points: Sequence[Point]) -> List[Evaluation]:
        self._parts = parts_of(self._system)
        self._device_types = sorted({"cpu", next(iter(points[0].parameters.values())).device.type})
        places = teachers_of(self._parts)
        joined = {id(teacher): JoinedTeacher(teacher, self._ask) for _, _, teacher in places}
        for part, name, teacher in places:
            vars(part)[name] = joined[id(teacher)]
        before = self._surroundings()
        try:
            return self._turns.run([partial(self._evaluate, point) for point in points], before)
        finally:
            # What modules have found out meanwhile and keep, such as tables made on first use, stays.
            before.attributes.restore_tensors()
            before.random_state.restore()
            before.modes.restore()
            for part, name, teacher in places:
                vars(part)[name] = teacher

    def bind(self, trained: Dict[str, nn.Parameter], values: Tensors) -> Dict[str, nn.Parameter]:
        """Gives the slot that runs parameters of its own, with these values, in the place of the system's."""
        own = {name: nn.Parameter(values[name], parameter.requires_grad) for name, parameter in trained.items()}
        by_id = {id(parameter): own[name] for name, parameter in trained.items()}
        for module in (part for part in self._parts if isinstance(part, nn.Module)):
            for key, parameter in module._parameters.items():
                module._parameters[key] = by_id.get(id(parameter), parameter)
        return own

    def backward(self, loss: Tensor) -> None:
        self._turns.ask(Backward(loss))

    def _ask(self, method: Callable[..., Tensor], arguments: Sequence[Any]) -> Tensor:
        return self._turns.ask(TeacherCall(method, arguments, Modes.now(self._device_types)))

    def _surroundings(self) -> Surroundings:
        return Surroundings(Attributes(self._parts), RandomState.now(), Modes.now(self._device_types))


def answer(requests: Sequence[Any]) -> Sequence[Any]:
    if isinstance(requests[0], TeacherCall):
        return answer_calls(requests)
    # Several roots, not their sum: a loss that is not finite stays its slot's own.
    torch.autograd.backward([request.loss for request in requests])
    return [None] * len(requests)


def teachers_of(parts: Sequence[Any]) -> List[Tuple[Any, str, Teacher]]:
    """Where parts hold a frozen teacher: (part, name of the attribute, teacher)."""
    return [
        (part, name, value)
        for part in parts
        for name, value in vars(part).items()
        if isinstance(value, Teacher) and not learns(value)
    ]


def learns(teacher: Teacher) -> bool:
    """Then slots ask it one by one, each with weights of its own."""
    return isinstance(teacher, nn.Module) and any(parameter.requires_grad for parameter in teacher.parameters())
