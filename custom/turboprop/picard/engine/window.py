"""Generalized Picard iteration over a sliding window of training steps (Zhou et al. 2023, DreamPropeller, section 4).

Training is a recurrence of states, x_{t+1} = h+(s(x_t), x_t), with the gradient s, which is expensive, and the
optimizer's update h+, which is cheap. From guesses x^k of all states of a window, one round computes

    x^{k+1}_{t+1} = h+(s(x^k_t), x^{k+1}_t),    x^{k+1}_0 = x_0        (DreamPropeller, eq. 9)

all gradients s(x^k_t) at once, then the updates in turn. As far as guesses were near enough to the states that came
out, gradients are accepted: the window slides by that stride. The first gradient is always that of the state itself, so
a round moves on by one step at least; with a threshold of zero, states are those of training step by step, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from .distances import DISTANCES, identical, squared_differences, switched
from .guesses import CONTINUATIONS
from .state import Evaluation, Gradients, Point, State, changed
from .thresholds import AdaptiveThreshold, FixedThreshold
from .updates import OptimizerUpdate

Evaluate = Callable[[Sequence[Point]], List[Evaluation]]  # an executor: gradients at all points


class Comparison(NamedTuple):
    """What a guess is like beside the state that came out."""

    error: float
    same: bool  # in what no error measures: occupancy grids, and, if the threshold is zero, every bit
    group: Optional[int]  # whose error it is; None: that of all groups in one


@dataclass
class Round:
    """What one round has brought."""

    step: int  # of the base
    length: int  # gradients that were computed
    accepted: List[Evaluation]  # of the steps from the base on; as many as the stride
    errors: List[float]  # of guess 1, 2, ... of the window and beyond it, in the distance's unit
    threshold: float  # that they were held to
    ended_by: str = ""  # what kept the next gradient from being accepted: a parameter group; nothing in a full window

    @property
    def stride(self) -> int:
        return len(self.accepted)

    @property
    def worst_accepted(self) -> float:
        """The largest error of an accepted guess; 0 where only the base was accepted."""
        return max(self.errors[: self.stride - 1], default=0.0)


class PicardWindow:
    """The guesses of a window, and how they get better. Knows neither models nor what runs them."""

    def __init__(
        self,
        evaluate: Evaluate,
        update: OptimizerUpdate,
        window: int,  # gradients a round
        threshold: FixedThreshold | AdaptiveThreshold,
        distance: str = "update",  # a name of DISTANCES
        guess: str = "zero_gradient",  # a name of CONTINUATIONS
        adapt: bool = False,  # smaller windows after short strides, larger ones after full strides
        total: Optional[Callable[[Tensor], Tensor]] = None,  # sum over all ranks, where each has a part of the states
    ) -> None:
        self.evaluate = evaluate
        self.update = update
        self.window = window
        self.threshold = threshold
        self.distance = DISTANCES[distance]
        self.continuation = CONTINUATIONS[guess]
        self.adapt = adapt
        self.total = total
        self.size = window  # now
        self.restart()

    def restart(self) -> None:
        """Forgets all guesses: the next round makes them from its base alone."""
        self._guesses: Dict[int, Point] = {}  # by step
        self._tail: Optional[State] = None  # the last state of the rollout, and from where guesses go on
        self._last: Optional[Gradients] = None
        self._next = -1  # the step that guesses go on from

    def state_dict(self) -> Dict[str, Any]:
        """What a restarted window still goes by."""
        return {"threshold": self.threshold.value, "size": self.size}

    def load_state_dict(self, saved: Dict[str, Any]) -> None:
        self.threshold.value = float(saved["threshold"])
        self.size = min(int(saved["size"]), self.window)

    @torch.no_grad()
    def round(self, base: State, limit: Optional[int] = None) -> Round:
        """One round from `base`, which stays as it is; with a window of at most `limit` gradients.

        The caller makes the accepted updates and hands the state that results to the next round.
        """
        length = self.size if limit is None else min(self.size, limit)
        if length < 1:
            raise ValueError(f"limit of a round: expected at least 1, got {limit}")
        points = self._points(base, length + self.threshold.guesses_beyond)
        evaluations = self.evaluate(points[:length])
        result = self._roll_out(base, points, evaluations)
        self.threshold.observe(result.errors)
        if self.adapt and length == self.size:
            self.size = adapted(self.size, result.stride, self.window)
        return result

    def _points(self, base: State, length: int) -> List[Point]:
        """The base and guesses of the states after it: where gradients are computed, and what is only compared."""
        if self._tail is None or base.step != self._next or self._tail.step <= base.step:
            self.restart()
            self._tail = base.clone()
        while self._tail.step < base.step + length - 1:
            self.continuation(self._tail, self._last, self.update)
            self._guesses[self._tail.step] = self._tail.point()
        return [base, *(self._guesses[base.step + i] for i in range(1, length))]

    def _roll_out(self, base: State, points: List[Point], evaluations: List[Evaluation]) -> Round:
        self._tail = self._last = None
        self._guesses = {}
        elements = [sum(base.parameters[name].numel() for name in group) for group in self.update.groups]
        moving, rows, rates, compared = base.clone(), [], [], []
        update = self.update if self.threshold.value == 0 else self.update.quick  # true steps are exact in any case
        for index, evaluation in enumerate(evaluations):
            rates.append(self.update.learning_rates(moving.step))
            update(moving, evaluation.gradients if evaluation.finite else None)
            moving.auxiliaries = changed(moving.auxiliaries, evaluation.changes)
            self._last = evaluation.gradients if evaluation.finite else self._last
            if index + 1 < len(points):
                rows.append(self._row(moving, points[index + 1]))
                points[index + 1] = base  # the guess has served: its memory is free
            if self.total is None:
                compared += self._compared(rows[index:], rates[index:], elements)
            # Guesses of the next round are the states of this one, where no guess has been near enough. Which those
            # are, ranks with parts of the states learn at the end.
            if self.total is not None or self._stride(compared, evaluations) <= index:
                self._guesses[moving.step] = moving.point()
        if self.total is not None:
            compared = self._compared(rows, rates, elements)
        stride = self._stride(compared, evaluations)
        # Those after them come from where the rollout ended.
        self._tail, self._next = moving, base.step + stride
        self._guesses = {step: guess for step, guess in self._guesses.items() if step > self._next}
        errors = [comparison.error for comparison in compared]
        ended_by = self._ended_by(compared, evaluations, stride)
        return Round(base.step, len(evaluations), evaluations[:stride], errors, self.threshold.value, ended_by)

    def _row(self, state: State, guess: Point) -> Tensor:
        """The sum of squared differences of each group, and then 1 where the guess will not do whatever they are: where
        an occupancy grid is another, and, if the threshold is zero, any bit [G + 1]. Rows of parts of states add up.
        """
        sums = squared_differences(state.parameters, guess.parameters, self.update.groups)
        differs = switched(state, guess) or (self.threshold.value == 0 and not identical(state, guess))
        return torch.cat([sums, sums.new_tensor([float(differs)])])

    def _compared(
        self, rows: List[Tensor], rates: List[List[float]], elements: List[int]
    ) -> List[Comparison]:
        """What each row says of its guess. One transfer from the device, and one sum over ranks."""
        if not rows:
            return []
        table = torch.stack([*rows, rows[0].new_tensor([*elements, 0.0])])  # [S + 1, G + 1]
        table = (table if self.total is None else self.total(table)).cpu()
        errors = self.distance(table[:-1, :-1], table[-1, :-1], torch.tensor(rates[: len(rows)]).double())
        # Rounded, so that they do not tell how many ranks the sums came from.
        largest, groups = errors.float().max(-1)
        of_all = errors.shape[-1] == 1
        return [
            Comparison(error, count == 0, None if of_all else group)
            for error, count, group in zip(largest.tolist(), table[:-1, -1].tolist(), groups.tolist())
        ]

    def _stride(self, compared: List[Comparison], evaluations: List[Evaluation]) -> int:
        """One, and as many guesses from the first on as were near enough."""
        stride = 1
        for comparison, evaluation in zip(compared, evaluations[1:]):
            # A gradient that is not finite at a guess may be finite at the state: it is computed there.
            if not (comparison.same and self._near(comparison) and evaluation.finite):
                break
            stride += 1
        return stride

    def _near(self, comparison: Comparison) -> bool:
        return comparison.error <= self.threshold.value and math.isfinite(comparison.error)

    def _ended_by(self, compared: List[Comparison], evaluations: List[Evaluation], stride: int) -> str:
        """What to look at, where longer strides are wanted."""
        if stride == len(evaluations):
            return ""
        refused = compared[stride - 1]
        if not self._near(refused):
            return "all parameters" if refused.group is None else self.update.group_name(refused.group)
        if not evaluations[stride].finite:
            return "a gradient that is not finite"
        return "another occupancy grid" if self.threshold.value > 0 else "other bits"


def adapted(size: int, stride: int, largest: int) -> int:
    """The next window: a quarter larger after a full stride, else no more than twice the stride."""
    if stride >= size:
        return min(largest, size + max(1, size // 4))
    return min(size, max(2, 2 * stride), largest)
