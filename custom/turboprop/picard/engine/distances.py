"""How far a state is from the guess at which its step's gradient was evaluated.

Every distance is made of one thing, the sums of squared differences by parameter group. Sums of parts of the parameters
add up, so parts may lie in different processes; and the sums of all slots leave the device at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .state import Point, Tensors

# (sums of squared differences [S, G] of S slots and G groups, elements of each group [G], rates [S, G]) -> errors of
# each group [S, G], or of all groups in one [S, 1]. The largest one counts.
Distance = Callable[[Tensor, Tensor, Tensor], Tensor]

BLOCK = 1 << 17  # elements; a difference of so many stays in a processor's cache, and float32 sums it up to 1e-6
LARGEST_SWITCH = 0.05  # share of an occupancy grid's cells; updates of one that has settled change fewer


def squared_differences(a: Tensors, b: Tensors, groups: Sequence[Sequence[str]]) -> Tensor:
    """The sum of squared differences of each parameter group [G], float64, on the parameters' device."""
    device = next(iter(a.values())).device
    sums = torch.zeros(len(groups), dtype=torch.float64, device=device)
    for index, names in enumerate(groups):
        norms = [norm for name in names for norm in _norms(a[name], b[name])]
        if norms:
            sums[index] = torch.stack(norms).double().square().sum()
    return sums


def _norms(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Norms of a - b, block by block on a CPU, where a difference in one piece would go through memory and back."""
    block = BLOCK if a.device.type == "cpu" else max(a.numel(), 1)
    dtype = torch.promote_types(a.dtype, torch.float32)
    for one, other in zip(a.reshape(-1).split(block), b.reshape(-1).split(block)):
        yield torch.linalg.vector_norm(one - other, dtype=dtype)


def update_distance(sums: Tensor, elements: Tensor, rates: Tensor) -> Tensor:
    """Mean of (difference / learning rate)^2 over the elements of each parameter group [S, G].

    Adam moves an element by about one learning rate a step (Kingma and Ba 2015, section 2.1), so 1 is as far as one
    update moves, whatever the parameters stand for. Groups that do not move (rate 0) do not count.
    """
    counts = (rates > 0) & (elements > 0)
    return torch.where(counts, sums / (elements * rates.square()), 0.0)


def mean_square_distance(sums: Tensor, elements: Tensor, rates: Tensor) -> Tensor:
    """Mean squared difference of all parameters, times 10^6 [S, 1]: DreamPropeller's (arXiv 2311.17082, eq. 14; its
    code's unit), for its thresholds."""
    return sums.sum(-1, keepdim=True) * (1e6 / elements.sum().clamp(min=1))


DISTANCES: dict[str, Distance] = {"update": update_distance, "mean_square": mean_square_distance}


def identical(a: Point, b: Point) -> bool:
    """Bit for bit, parameters and auxiliaries."""
    return all(
        one.keys() == other.keys() and all(one[key] is other[key] or torch.equal(one[key], other[key]) for key in one)
        for one, other in ((a.parameters, b.parameters), (a.auxiliaries, b.auxiliaries))
    )


def switched(a: Point, b: Point) -> bool:
    """Whether more than LARGEST_SWITCH of a boolean buffer is on in one and off in the other.

    Such a buffer is an occupancy grid: no error of the parameters tells that a guess still has the empty one from
    before the first step, at which nothing is rendered.
    """
    return any(
        value.dtype == torch.bool
        and value is not b.auxiliaries[name]
        and float((value != b.auxiliaries[name]).float().mean()) > LARGEST_SWITCH
        for name, value in a.auxiliaries.items()
    )
