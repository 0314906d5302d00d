"""How far a guess may be from the state for its gradient to be accepted."""

from __future__ import annotations

import math
from statistics import fmean, median
from typing import Callable, Dict, Sequence

STATISTICS: Dict[str, Callable[[Sequence[float]], float]] = {"mean": fmean, "median": median}


class FixedThreshold:
    """The accuracy is set, and the stride is what the problem allows."""

    def __init__(self, value: float) -> None:
        self.value = value

    def observe(self, errors: Sequence[float]) -> None:
        """Does not depend on what was seen."""


class AdaptiveThreshold:
    """DreamPropeller's (arXiv 2311.17082, section 4.4): a moving average of the windows' mean or median error.

    It sets the stride, near half the window, and lets the error be what it is.
    """

    def __init__(self, value: float, decay: float, statistic: str) -> None:
        self.value = value
        self.decay = decay  # share of the old value that stays, each round
        self.statistic = STATISTICS[statistic]

    def observe(self, errors: Sequence[float]) -> None:
        finite = [error for error in errors if math.isfinite(error)]
        if finite:
            self.value = self.decay * self.value + (1 - self.decay) * self.statistic(finite)
