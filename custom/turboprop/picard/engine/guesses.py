"""First guesses for the states that come into a window: the end of the rollout, continued by cheap updates."""

from __future__ import annotations

from typing import Callable, Dict, Optional

from .state import Gradients, State
from .updates import OptimizerUpdate

# (the state to move on by one step, the last gradients seen, the update)
Continuation = Callable[[State, Optional[Gradients], OptimizerUpdate], None]


def copy_state(state: State, last: Optional[Gradients], update: OptimizerUpdate) -> None:
    """Parameters stay as they are, as in DreamPropeller."""
    state.step += 1


def continue_moments(state: State, last: Optional[Gradients], update: OptimizerUpdate) -> None:
    """An update with gradients of zero: parameters go on by what the moments remember."""
    update.coast(state)


def repeat_gradient(state: State, last: Optional[Gradients], update: OptimizerUpdate) -> None:
    """An update with the last gradients once more."""
    if last is None:
        continue_moments(state, last, update)
    else:
        update.quick(state, last)


CONTINUATIONS: Dict[str, Continuation] = {
    "copy": copy_state,
    "zero_gradient": continue_moments,
    "last_gradient": repeat_gradient,
}
