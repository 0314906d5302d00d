"""How long ranks take for their gradients, and which of them the others wait for."""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import fmean, median
from typing import Callable, List, NamedTuple, Sequence

from ..engine.state import Evaluation, Point


class RoundSeconds(NamedTuple):
    gradients: float  # of the rank that took longest
    waiting: float  # for that rank, mean of all ranks
    rest: float  # exchange, rollout, errors


def timed(evaluate: Callable[[Sequence[Point]], List[Evaluation]], points: Sequence[Point]) -> List[Evaluation]:
    """What `evaluate` answers, with the seconds that each took: an equal share, as some are computed together."""
    begun = time.perf_counter()
    evaluations = evaluate(points)
    share = (time.perf_counter() - begun) / max(len(evaluations), 1)
    return [replace(evaluation, seconds=share) for evaluation in evaluations]


class Pace:
    """How fast the ranks of a run are; slot i is of rank i modulo the number of ranks."""

    def __init__(self, ranks: int, slow_ratio: float, slow_rounds: int = 10) -> None:
        self.ranks = ranks
        self.slow_ratio = slow_ratio
        self.slow_rounds = slow_rounds
        self._slow = [0] * ranks  # rounds running in which a rank was slow
        self._patience = [slow_rounds] * ranks  # rounds of that until it is told; longer, once it was told

    def of_round(self, slots: Sequence[float], seconds: float) -> RoundSeconds:
        """From the seconds of each slot, and of the round in all."""
        by_rank = [sum(slots[rank :: self.ranks]) for rank in range(self.ranks)]
        longest = max(by_rank)
        return RoundSeconds(longest, longest - fmean(by_rank), max(seconds - longest, 0.0))

    def warnings(self, slots: Sequence[float]) -> List[str]:
        """A line about each rank that has been slow for so many rounds running: told once, and rarely again."""
        by_rank = [slots[rank :: self.ranks] for rank in range(self.ranks)]
        if self.ranks == 1 or not all(by_rank):
            return []
        each = [fmean(of) for of in by_rank]
        lines = []
        for rank, own in enumerate(each):
            others = median(each[:rank] + each[rank + 1 :])
            self._slow[rank] = self._slow[rank] + 1 if own > self.slow_ratio * others else 0
            if self._slow[rank] == self._patience[rank]:
                self._patience[rank] *= 10
                lines.append(
                    f"picard: rank {rank} is slow: now {own:.3g} s for a gradient, the others {others:.3g} s (median), "
                    f"and more than {self.slow_ratio:g} times theirs for {self._slow[rank]} rounds running"
                )
        return lines
