"""What the engine moves along: states of a training run, and what a gradient evaluation answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Gradients = dict[str, Tensor | None]  # None: the loss does not depend on the parameter
Moments = dict[str, dict[str, Any]]  # parameter: what the optimizer keeps of it, by name


@dataclass
class Point:
    """All that the gradient of a step depends on: it is a function of this alone, random draws included."""

    step: int  # finished optimizer steps
    parameters: Tensors
    auxiliaries: Tensors = field(default_factory=dict)  # named tensors that a step changes without the optimizer


@dataclass
class State(Point):
    """A point, and what the optimizer needs to go on from there."""

    moments: Moments = field(default_factory=dict)

    def clone(self) -> State:
        """A copy that shares no tensor with this one: moments too, which optimizers change in place."""
        return State(self.step, cloned(self.parameters), cloned(self.auxiliaries), cloned_moments(self.moments))

    def point(self) -> Point:
        """A copy without the moments."""
        return Point(self.step, cloned(self.parameters), dict(self.auxiliaries))


def cloned(tensors: Tensors) -> Tensors:
    return {name: value.detach().clone() for name, value in tensors.items()}


def cloned_moments(moments: Moments) -> Moments:
    return {
        name: {key: value.detach().clone() if isinstance(value, Tensor) else value for key, value in of.items()}
        for name, of in moments.items()
    }


class Change(NamedTuple):
    """What a step does to an auxiliary."""

    kind: str  # "replace": the value after the step; "sum": is added; "max": the larger one stays
    value: Tensor

    def after(self, before: Tensor) -> Tensor:
        if self.kind == "replace":
            return self.value
        if self.kind == "sum":
            return before + self.value
        if self.kind == "max":
            return torch.maximum(before, self.value)
        raise ValueError(f"change of an auxiliary: expected replace, sum or max, got {self.kind!r}")


Changes = dict[str, Change]


def changed(auxiliaries: Tensors, changes: Changes) -> Tensors:
    """The auxiliaries after a step; those that it leaves alone are shared."""
    return {**auxiliaries, **{name: change.after(auxiliaries[name]) for name, change in changes.items()}}


@dataclass
class Evaluation:
    """The answer of the expensive part of a step at a point."""

    gradients: Gradients
    changes: Changes = field(default_factory=dict)
    finite: bool = True  # no NaN or Inf among the gradients; an update with others is left out
    extra: Any = None  # what the caller wants to have with it when the step is accepted
    seconds: float = 0.0  # that it took

    @staticmethod
    def of(gradients: Gradients, changes: Changes | None = None, extra: Any = None) -> Evaluation:
        return Evaluation(gradients, changes or {}, all_finite(gradients), extra)


def all_finite(gradients: Gradients) -> bool:
    """One transfer from the device for all tensors, of their extremes, which are NaN where anything is."""
    given: list[Tensor] = [value for value in gradients.values() if value is not None and value.numel() > 0]
    if not given:
        return True
    extremes = torch.stack([extreme.double() for value in given for extreme in torch.aminmax(value)])
    return bool(torch.isfinite(extremes).all())
