"""Whether a CUDA library that a user has does what our reference does, found out by running it.

Such a library may be installed and still not run (built for another torch or another GPU), or compute something else in
this version. So ``backend: auto`` takes it only once it has run a small call in this process and agreed with ours, in
values and gradients; else it says so, once, and takes the next backend.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

import threestudio

TOLERANCE = 1e-3  # of the largest value, for float32 sums in another order

known: dict[Hashable, bool] = {}  # what was found out: by library, device, and what else the call hangs on


def agrees(
    library: str,
    device: torch.device,
    check: Callable[[], Sequence[tuple[Tensor, Tensor]]],  # pairs of the library's result and ours, of equal shape
    key: Hashable = None,  # what the check hangs on besides the device, such as a layout
) -> bool:
    """Whether the library's results are ours; runs the check the first time it is asked."""
    place = (library, device, key)
    if place not in known:
        reason = _disagreement(check)
        known[place] = reason is None
        if reason is not None:
            threestudio.warn(f"{library} is installed and not used on {device}: {reason}")
    return known[place]


def _disagreement(check: Callable[[], Sequence[tuple[Tensor, Tensor]]]) -> Any:
    """Why the library is not to be used, in one line; None where nothing speaks against it."""
    try:
        with torch.enable_grad():
            pairs = [(theirs.detach(), ours.detach()) for theirs, ours in check()]
            for theirs, ours in pairs:
                if theirs.shape != ours.shape:
                    return f"a result is of shape {list(theirs.shape)}, ours of {list(ours.shape)}"
                error = (theirs.float() - ours.float()).abs().max().item()
                largest = ours.abs().max().item()
                if not error <= TOLERANCE * max(largest, 1e-6):
                    return f"a result of a small call is off by {error:.3g}, ours is at most {largest:.3g}"
    except Exception as error:  # an import, a build, a launch: whatever a foreign library raises
        return f"a small call failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


def wave(*shape: int, device: torch.device, frequency: float = 0.7) -> Tensor:
    """Numbers in [0, 1] that are the same everywhere; no random generator is touched."""
    count = torch.Size(shape).numel()
    return (0.5 + 0.5 * torch.sin(frequency * torch.arange(count, device=device, dtype=torch.float32))).view(shape)


def values_and_gradients(function: Callable[..., Sequence[Tensor]], *inputs: Tensor) -> list[Tensor]:
    """What the function gives for the inputs, and the gradients of a fixed weighting of it."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    weighted = [(x * wave(*x.shape, device=x.device, frequency=1.3)).sum() for x in out]
    total = sum(weighted[1:], start=weighted[0])
    return [*out, *torch.autograd.grad(total, leaves)]
