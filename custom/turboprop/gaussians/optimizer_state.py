"""Between a torch optimizer and the moments of a GaussianState."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .densification import Moments


def read_moments(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> Moments:
    """The optimizer's averages of these parameters: every entry of its state that is shaped as the parameter."""
    return {
        name: {key: value for key, value in optimizer.state[parameter].items() if _is_moment(value, parameter)}
        for name, parameter in parameters.items()
        if parameter in optimizer.state
    }


def _is_moment(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape == parameter.shape


def exchange_parameters(
    optimizer: torch.optim.Optimizer,
    old: dict[str, nn.Parameter],
    new: dict[str, nn.Parameter],
    moments: Moments,  # of the new ones
) -> None:
    """Puts new parameters in the place of old ones, with their moments; other state by parameter (steps) moves over."""
    replacement = {id(old[name]): new[name] for name in new}
    for group in optimizer.param_groups:
        group["params"] = [replacement.get(id(parameter), parameter) for parameter in group["params"]]
    for name, parameter in new.items():
        if old[name] in optimizer.state:
            optimizer.state[parameter] = {**optimizer.state.pop(old[name]), **moments.get(name, {})}
