"""How far a state is from the guess at which its step's gradient was evaluated."""

from __future__ import annotations

from typing import Callable, Dict, List, Sequence

import torch
from torch import Tensor

from .state import Point, Tensors

# (rolled out, guess, names of each parameter group, learning rate of each group) -> 0-dim tensor
Distance = Callable[[Tensors, Tensors, Sequence[Sequence[str]], List[float]], Tensor]


def _sum_of_squares(a: Tensors, b: Tensors, names: Sequence[str]) -> Tensor:
    return torch.stack([(a[name] - b[name]).float().square().sum() for name in names]).sum()


def update_distance(a: Tensors, b: Tensors, groups: Sequence[Sequence[str]], rates: List[float]) -> Tensor:
    """Mean of (difference / learning rate)^2 over the elements of a parameter group; the largest of all groups.

    Adam moves an element by about one learning rate a step (Kingma and Ba 2015, section 2.1), so 1 is as far as one
    update moves, whatever the parameters stand for. Groups that do not move (rate 0) do not count.
    """
    means = []
    for names, rate in zip(groups, rates):
        elements = sum(a[name].numel() for name in names)
        if rate > 0 and elements > 0:
            means.append(_sum_of_squares(a, b, names) / (elements * rate**2))
    return torch.stack(means).amax() if means else torch.zeros(())


def mean_square_distance(a: Tensors, b: Tensors, groups: Sequence[Sequence[str]], rates: List[float]) -> Tensor:
    """Mean squared difference of all parameters, times 10^6: DreamPropeller's (arXiv 2311.17082, eq. 14; its code's
    unit), for its thresholds."""
    names = [name for group in groups for name in group]
    elements = sum(a[name].numel() for name in names)
    return _sum_of_squares(a, b, names) * (1e6 / max(elements, 1))


DISTANCES: Dict[str, Distance] = {"update": update_distance, "mean_square": mean_square_distance}


def identical(a: Point, b: Point) -> bool:
    """Bit for bit, parameters and auxiliaries."""
    return all(
        one.keys() == other.keys() and all(one[key] is other[key] or torch.equal(one[key], other[key]) for key in one)
        for one, other in ((a.parameters, b.parameters), (a.auxiliaries, b.auxiliaries))
    )
