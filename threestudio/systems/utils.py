"""Optimizers and learning-rate schedules from configs."""

from typing import Any, Iterator

import torch
from torch import nn

import threestudio
from threestudio.systems.adan import Adan
from threestudio.utils.errors import UserError, with_suggestion


def _attribute(model: Any, path: str) -> Any:
    """The attribute at a dotted path, as `geometry.encoding`; numbers index lists of modules."""
    value = model
    for part in path.split("."):
        children = dict(value.named_children()) if isinstance(value, nn.Module) else {}
        if part in children:
            value = children[part]
        elif hasattr(value, part):
            value = getattr(value, part)
        else:
            message = f"optimizer.params.{path}: {type(value).__name__} has no '{part}'"
            raise UserError(with_suggestion(message, part, children))
    return value


def _parameters(value: Any, path: str) -> Iterator[nn.Parameter]:
    if isinstance(value, nn.Module):
        return iter(list(value.parameters()))
    if isinstance(value, nn.Parameter):
        return iter([value])
    raise UserError(
        f"optimizer.params.{path}: expected a module or a parameter, got {type(value).__name__}"
    )


def _constructed(factory: type, args: dict, where: str) -> Any:
    """`factory(**args)`, with what it says about a wrong argument as the user's error."""
    try:
        return factory(**args)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from error


def _optimizer_class(name: str) -> type:
    if name == "Adan":
        return Adan
    if name == "FusedAdam":  # apex's name; torch's Adam is fused by itself where it can be
        return torch.optim.Adam
    found = getattr(torch.optim, name, None)
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer):
        return found
    known = [n for n, c in vars(torch.optim).items() if isinstance(c, type)]
    message = f"optimizer.name: unknown optimizer '{name}'"
    raise UserError(with_suggestion(message, name, [*known, "Adan", "FusedAdam"]))


def parse_optimizer(config: Any, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that `config` describes: `name`, `args`, and optional `params`.

    `params` maps dotted attribute paths of `model` to the arguments of their parameter group, which
    is named by the path; without it all parameters are one group.
    """
    args = dict(config.get("args") or {})
    groups = config.get("params")
    if groups:
        params: list = []
        for path, group_args in groups.items():
            members = list(_parameters(_attribute(model, path), path))
            params.append({"params": members, "name": path, **(group_args or {})})
            threestudio.debug(f"optimizer group {path}: {group_args}")
    else:
        params = [p for p in model.parameters()]
    if not params or (not groups and not any(p.requires_grad for p in params)):
        raise UserError("optimizer: the system has no trainable parameters")
    args = {key: tuple(v) if key == "betas" else v for key, v in args.items()}
    return _constructed(
        _optimizer_class(config.name), {"params": params, **args}, f"optimizer ({config.name})"
    )


def _scheduler_class(name: str) -> type:
    known = {n: c for n, c in vars(torch.optim.lr_scheduler).items() if n[0].isupper()}
    if name not in known:
        message = f"scheduler.name: unknown scheduler '{name}'"
        raise UserError(with_suggestion(message, name, known))
    return known[name]


def parse_scheduler_to_instance(config: Any, optimizer: torch.optim.Optimizer) -> Any:
    """A bare scheduler; `SequentialLR` and `ChainedScheduler` take a list `schedulers`."""
    name, args = config.name, dict(config.get("args") or {})
    nested = [parse_scheduler_to_instance(c, optimizer) for c in config.get("schedulers") or []]
    if name == "ChainedScheduler":
        return _constructed(_scheduler_class(name), {"schedulers": nested, **args}, name)
    if name == "SequentialLR":
        milestones = list(config.get("milestones") or args.pop("milestones", []))
        args = {"schedulers": nested, "milestones": milestones, **args}
    if name == "LambdaLR" or "lr_lambda" in args:
        raise UserError(f"scheduler.name: {name} takes a function, which a config cannot hold")
    return _constructed(
        _scheduler_class(name), {"optimizer": optimizer, **args}, f"scheduler ({name})"
    )


def parse_scheduler(config: Any, optimizer: torch.optim.Optimizer) -> dict:
    """The scheduler in Lightning's form; `interval` is "epoch" (default) or "step"."""
    interval = config.get("interval") or "epoch"
    if interval not in ("epoch", "step"):
        raise UserError(f"scheduler.interval: expected 'epoch' or 'step', got '{interval}'")
    return {"scheduler": parse_scheduler_to_instance(config, optimizer), "interval": interval}
