"""The cheap part of a step: an optimizer's update as a function of (state, gradients).

DreamPropeller (Zhou et al. 2023, arXiv 2311.17082, section 4.2) calls it the pseudo-inverse h+: given the gradient,
which is expensive, the next state costs little. Any torch optimizer does whose update is elementwise.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Callable, Dict, List, Optional, Sequence

import torch
from torch import Tensor, nn

from .state import Gradients, State, Tensors

GroupSettings = List[Dict[str, Any]]  # for each parameter group: lr, betas, eps, weight_decay, ...


class OptimizerUpdate:
    """Moves states on as `optimizer` would, which itself stays untouched, and so do gradients.

    Its arithmetic is the optimizer's own `step`, so that it is the same bit for bit on a CPU, and should be on any
    device; or that of `quick`, which is near, for guesses.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        groups: Sequence[Sequence[str]],  # names of the parameters of each group, in the optimizer's order
        settings: Optional[Callable[[int], GroupSettings]] = None,  # by finished steps; default: as they are now
    ) -> None:
        self.groups = [list(names) for names in groups]
        fixed = group_settings(optimizer)
        self.settings = settings or (lambda step: fixed)
        self._replica = bare_replica(optimizer)
        self._zeros: Tensors = {}

    def group_name(self, index: int) -> str:
        """As the optimizer's group is called, or its first parameter."""
        return str(self._replica.param_groups[index].get("name") or next(iter(self.groups[index]), ""))

    def learning_rates(self, step: int) -> List[float]:
        """Each group's rate, for the update that follows `step` finished ones."""
        return [float(group["lr"]) for group in self.settings(step)]

    def __call__(self, state: State, gradients: Optional[Gradients]) -> None:
        """One update, in place; without gradients a step that was left out."""
        if gradients is not None:
            self._step(state, gradients)
        state.step += 1

    def quick(self, state: State, gradients: Optional[Gradients]) -> None:
        """As a call, but by torch's fused kernel where the optimizer would go over the tensors operation by operation,
        as it does on a processor by default: three to four times as fast, and other by rounding."""
        if gradients is not None:
            self._step(state, gradients, fused if lie_alike(state.parameters, gradients) else None)
        state.step += 1

    def coast(self, state: State) -> None:
        """A quick update with gradients of zero: parameters go on by what the moments remember."""
        moving = {name: state.parameters[name] for name, moments in state.moments.items() if moments}
        for name, value in moving.items():
            kept = self._zeros.get(name)
            if kept is None or (kept.shape, kept.dtype, kept.device) != (value.shape, value.dtype, value.device):
                self._zeros[name] = torch.zeros_like(value)  # made once: updates read gradients only
        self.quick(state, {name: self._zeros[name] for name in moving})

    @torch.no_grad()
    def _step(self, state: State, gradients: Gradients, changed: Optional[Callable[[dict], dict]] = None) -> None:
        replica = self._replica
        bound: Dict[str, nn.Parameter] = {}
        replica.state = defaultdict(dict)
        for group, names, settings in zip(replica.param_groups, self.groups, self.settings(state.step)):
            group.update(changed(settings) if changed else settings)
            group["params"] = []
            for name in names:
                parameter = nn.Parameter(state.parameters[name])  # shares the state's memory
                parameter.grad = gradients.get(name)
                group["params"].append(parameter)
                bound[name] = parameter
                if state.moments.get(name):
                    replica.state[parameter] = state.moments[name]
        replica.step()
        for name, parameter in bound.items():
            if parameter in replica.state:
                state.moments[name] = replica.state[parameter]
            parameter.grad = None


def group_settings(optimizer: torch.optim.Optimizer) -> GroupSettings:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def fused(settings: Dict[str, Any]) -> Dict[str, Any]:
    """A group's settings with the fused kernel, where the optimizer has one and the group asks for nothing else."""
    asks = [settings.get(key) for key in ("foreach", "capturable", "differentiable")]
    if "fused" not in settings or settings["fused"] is not None or any(asks) or isinstance(settings["lr"], Tensor):
        return settings
    return {**settings, "fused": True}


def lie_alike(parameters: Tensors, gradients: Gradients) -> bool:
    """Whether all lie in a processor's memory in order: its fused kernels do not look at strides."""
    given = [(parameters[name], value) for name, value in gradients.items() if value is not None]
    return all(of.device.type == "cpu" and of.is_contiguous() and value.is_contiguous() for of, value in given)


def bare_replica(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """An optimizer of the same class and settings, without parameters and without state."""
    replica = type(optimizer).__new__(type(optimizer))
    groups = [{**settings, "params": []} for settings in group_settings(optimizer)]
    replica.__setstate__({"defaults": dict(optimizer.defaults), "state": defaultdict(dict), "param_groups": groups})
    return replica
