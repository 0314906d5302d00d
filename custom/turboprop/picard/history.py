"""What the rounds of a run were like: a table, a line, and a picture."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from threestudio.utils.staged_files import staged

from .engine.window import Round
from .processes.pace import RoundSeconds


class RoundFigures(NamedTuple):
    step: int  # of the base
    window: int  # gradients computed
    stride: int  # gradients accepted
    error: float  # largest of the accepted guesses
    threshold: float
    ended_by: str = ""  # what kept the next gradient from being accepted; empty where the window was full


class History:
    def __init__(self) -> None:
        self.rows: list[RoundFigures] = []
        self.seconds: list[RoundSeconds] = []  # of the same rounds; no two runs have the same
        self.missed = 0  # steps whose optimizer settings were not those that the rollout reckoned with

    @staticmethod
    def of(rows: Sequence[Sequence[Any]], seconds: Sequence[Sequence[float]]) -> History:
        history = History()
        history.rows = [RoundFigures(*row) for row in rows]
        history.seconds = [RoundSeconds(*map(float, row)) for row in seconds]
        return history

    def rows_as_lists(self) -> list[list[Any]]:
        return [list(row) for row in self.rows]

    def seconds_as_lists(self) -> list[list[float]]:
        return [list(row) for row in self.seconds]

    def add(self, result: Round, seconds: RoundSeconds) -> None:
        self.rows.append(
            RoundFigures(
                result.step, result.length, result.stride, result.worst_accepted, result.threshold, result.ended_by
            )
        )
        self.seconds.append(seconds)

    def take_back(self, steps: int, ended_by: str) -> None:
        """The last accepted gradients of the last round were not used, and why."""
        if steps:
            self.rows[-1] = self.rows[-1]._replace(stride=self.rows[-1].stride - steps, ended_by=ended_by)

    def last_figures(self) -> dict[str, float]:
        row = self.rows[-1]
        return {name: float(value) for name, value in row._asdict().items() if name not in ("step", "ended_by")}

    def mean_stride(self) -> float:
        return sum(row.stride for row in self.rows) / max(len(self.rows), 1)

    def summary_line(self) -> str:
        gradients = sum(row.window for row in self.rows)
        steps = sum(row.stride for row in self.rows)
        return (
            f"Picard: {steps} steps in {len(self.rows)} rounds, mean stride {self.mean_stride():.2f}, "
            f"{gradients} gradients computed{self.ends()}; {self.shares()}"
        )

    def ends(self) -> str:
        """What has cut windows short, most often first."""
        counts = Counter(row.ended_by for row in self.rows if row.ended_by)
        named = ", ".join(f"{name} ({count})" for name, count in counts.most_common())
        return f", windows cut short by {named}" if named else ""

    def shares(self) -> str:
        """The parts of the rounds' time, in words."""
        totals = {name: sum(getattr(row, name) for row in self.seconds) for name in RoundSeconds._fields}
        whole = max(totals["gradients"] + totals["rest"], 1e-9)
        waiting, rest = totals["waiting"] / whole, totals["rest"] / whole
        return f"of the time {1 - waiting - rest:.0%} gradients, {waiting:.0%} waiting for others, {rest:.0%} the rest"

    def save(self, path: str) -> None:
        """The table as CSV, and beside it the picture as PNG."""
        with staged(path) as scratch:
            with Path(scratch).open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow([*RoundFigures._fields, *(f"{name}_s" for name in RoundSeconds._fields)])
                writer.writerows(
                    [*row, *(round(value, 6) for value in seconds)] for row, seconds in zip(self.rows, self.seconds)
                )
            draw(self.rows, Path(scratch).with_suffix(".png"))


def draw(rows: Sequence[RoundFigures], path: Path) -> None:
    """Stride and window above, error and threshold below, over the steps of the run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    steps = [row.step for row in rows]
    above.step(steps, [row.window for row in rows], where="post", color="0.7", label="window")
    above.plot(steps, [row.stride for row in rows], ".", markersize=4, label="stride")
    above.set_ylabel("steps a round")
    below.plot(steps, [row.error for row in rows], ".", markersize=4, label="largest accepted error")
    below.plot(steps, [row.threshold for row in rows], color="0.4", label="threshold")
    if any(row.error > 0 for row in rows):
        below.set_yscale("log")
    below.set_xlabel("step")
    below.set_ylabel("error")
    for axes in (above, below):
        axes.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=120)
