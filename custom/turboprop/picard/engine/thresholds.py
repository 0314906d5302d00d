"""How far a guess may be from the state for its gradient to be accepted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean


def middle(errors: Sequence[float]) -> float:
    """The error in the middle of the window: what DreamPropeller calls the median, errors growing along a window."""
    return errors[len(errors) // 2]


STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {"mean": fmean, "median": middle}


class FixedThreshold:
    """The accuracy is set, and the stride is what the problem allows."""

    guesses_beyond = 0  # guesses after a window's last gradient whose errors are looked at

    def __init__(self, value: float) -> None:
        self.value = value

    def observe(self, errors: Sequence[float]) -> None:
        """Does not depend on what was seen."""


class AdaptiveThreshold:
    """DreamPropeller's (arXiv 2311.17082, section 4.4): a moving average of the windows' mean or median error.

    It sets the stride, near half the window, and lets the error be what it is. As in its code, a window of P gradients
    has P errors: those of the guesses that gradients were computed at, the base aside, and that of the guess which the
    last gradient leads to. An average that is not finite is left out.
    """

    guesses_beyond = 1

    def __init__(self, value: float, decay: float, statistic: str) -> None:
        self.value = value
        self.decay = decay  # share of the old value that stays, each round
        self.statistic = STATISTICS[statistic]

    def observe(self, errors: Sequence[float]) -> None:
        seen = self.statistic(errors)
        if math.isfinite(seen):
            self.value = self.decay * self.value + (1 - self.decay) * seen
