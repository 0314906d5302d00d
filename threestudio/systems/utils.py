"""Optimizers and learning-rate schedules from configs."""

import inspect
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

import threestudio
from threestudio.systems.adan import Adan
from threestudio.utils.argument_checks import check_arguments, check_required, tried
from threestudio.utils.errors import UserError, with_suggestion
from threestudio.utils.value_checks import is_number, shown

OPTIMIZER, SCHEDULER = "system.optimizer", "system.scheduler"  # where they stand in a config


def _attribute(model: Any, path: str) -> Any:
    """The attribute at a dotted path, as `geometry.encoding`; numbers index lists of modules."""
    value = model
    for part in path.split("."):
        children = dict(value.named_children()) if isinstance(value, nn.Module) else {}
        found = children[part] if part in children else getattr(value, part, None)
        if found is None:
            message = f"{OPTIMIZER}.params.{path}: {type(value).__name__} has no '{part}'"
            raise UserError(with_suggestion(message, part, children))
        value = found
    return value


def _parameters(value: Any, path: str) -> Iterator[nn.Parameter]:
    if isinstance(value, nn.Module):
        return iter(list(value.parameters()))
    if isinstance(value, nn.Parameter):
        return iter([value])
    raise UserError(f"{OPTIMIZER}.params.{path}: expected a module or a parameter, got {type(value).__name__}")


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _section(config: Any, key: str, known: tuple[str, ...]) -> dict[str, Any]:
    """The entries of an optimizer's or a scheduler's config. Raises UserError for an unknown one, or without a name."""
    entries = _plain(config)
    if not isinstance(entries, dict):
        raise UserError(f"{key}: expected a mapping of keys to values, got {shown(config)}")
    for name in entries:
        if name not in known:
            raise UserError(with_suggestion(f"unknown key '{key}.{name}'", name, known))
    if not isinstance(entries.get("name"), str):
        raise UserError(f"{key}.name: expected the name of a class, got {shown(entries.get('name'))}")
    for name, value in entries.items():
        if name in ("args", "params") and value is not None and not isinstance(value, dict):
            raise UserError(f"{key}.{name}: expected a mapping of keys to values, got {shown(value)}")
    return entries


def _optimizer_class(name: str) -> type:
    if name == "Adan":
        return Adan
    if name == "FusedAdam":  # apex's name; torch's Adam is fused by itself where it can be
        return torch.optim.Adam
    found = getattr(torch.optim, name, None)
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer):
        return found
    known = [n for n, c in vars(torch.optim).items() if isinstance(c, type)]
    message = f"{OPTIMIZER}.name: unknown optimizer '{name}'"
    raise UserError(with_suggestion(message, name, [*known, "Adan", "FusedAdam"]))


def _with_tuples(args: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}


def _step_of_its_own(factory: type, of_all: dict[str, Any], own: dict[str, Any]) -> torch.optim.Optimizer:
    """An optimizer of one small matrix that has made a step, which is where many wrong values show."""
    matrix = nn.Parameter(torch.zeros(2, 2))
    matrix.grad = torch.zeros(2, 2)
    optimizer = factory([matrix], **_with_tuples({**of_all, **own}))
    optimizer.step()
    return optimizer


def _steps_alone(factory: type) -> bool:
    """Whether an optimizer makes a step without a function that computes the loss. Raises UserError for one that makes
    none of dense gradients."""
    try:
        _step_of_its_own(factory, {}, {})
    except RuntimeError as error:
        raise UserError(f"{OPTIMIZER}.name: {factory.__name__}: {error}") from error
    except (TypeError, ValueError):
        return False
    return True


def check_optimizer(config: Any) -> None:
    """Raises UserError for an optimizer's config that no step can be made with; needs no model.

    Arguments of a group are tried as well: torch itself looks at those of all groups alone.
    """
    entries = _section(config, OPTIMIZER, ("name", "args", "params"))
    factory, args = _optimizer_class(entries["name"]), entries.get("args") or {}
    sections = {f"{OPTIMIZER}.args": ({}, args)}
    for path, group in (entries.get("params") or {}).items():
        if group is not None and not isinstance(group, dict):
            raise UserError(f"{OPTIMIZER}.params.{path}: expected arguments of a group, got {shown(group)}")
        if nested := [name for name, value in (group or {}).items() if isinstance(value, dict)]:
            name = f"{path}.{nested[0]}"
            raise UserError(
                f"unknown key '{OPTIMIZER}.params.{name}'; on the command line a name with dots stands in brackets: "
                f"'{OPTIMIZER}.params[{name}].lr=0.01'"
            )
        sections[f"{OPTIMIZER}.params.{path}"] = (args, group or {})
    steps = _steps_alone(factory)
    for key, (of_all, given) in sections.items():
        check_arguments(factory, _with_tuples(given), key, ("params",))
        if steps:
            tried(partial(_step_of_its_own, factory, of_all), given, key)


def parse_optimizer(config: Any, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that `config` describes: `name`, `args`, and optional `params`.

    `params` maps dotted attribute paths of `model` to the arguments of their parameter group, which
    is named by the path; without it all parameters are one group. Raises UserError as `check_optimizer`.
    """
    check_optimizer(config)
    entries = _plain(config)
    groups = entries.get("params")
    if groups:
        params: list = []
        group_of: dict[nn.Parameter, str] = {}
        for path, group_args in groups.items():
            members = list(_parameters(_attribute(model, path), path))
            again = next((other for p in members if (other := group_of.setdefault(p, path)) != path), None)
            if again is not None:
                raise UserError(f"{OPTIMIZER}.params.{path}: has weights that the group {again} has too; leave one out")
            params.append({"params": members, "name": path, **_with_tuples(group_args or {})})
            threestudio.debug(f"optimizer group {path}: {group_args}")
    else:
        params = [p for p in model.parameters()]
    if not params or (not groups and not any(p.requires_grad for p in params)):
        raise UserError(f"{OPTIMIZER}: the system has no trainable parameters")
    try:
        return _optimizer_class(entries["name"])(params=params, **_with_tuples(entries.get("args") or {}))
    except ValueError as error:  # of one that takes weights of some shapes alone
        raise UserError(f"{OPTIMIZER}: {entries['name']}: {error}") from error


def with_guidance_groups(config: Any, system: nn.Module) -> Any:
    """An optimizer's config with a group, by its part's name, for the weights that each of the guidances trains.

    A guidance gives the group's arguments by an attribute `optimizer_group`; those of other authors need not have it.
    Those that the optimizer does not take are left out. The config is as it was where a guidance gives none, or where
    it has such a group already. Where it had no groups, each part of the system has one, with the optimizer's own
    arguments.
    """
    children = dict(system.named_children())
    for part, guidance in children.items():
        settings = getattr(guidance, "optimizer_group", None)
        groups = dict(config.get("params") or {})
        if settings is None or any(path.split(".")[0] == part for path in groups):
            continue
        factory = _optimizer_class(_section(config, OPTIMIZER, ("name", "args", "params"))["name"])
        if not groups:
            groups = {name: {} for name, child in children.items() if next(child.parameters(), None) is not None}
        taken = inspect.signature(factory).parameters
        own = {name: value for name, value in settings.items() if name in taken}
        config = OmegaConf.merge(config, {"params": {**groups, part: own}})
    return config


def _scheduler_class(name: str, key: str) -> type:
    base = torch.optim.lr_scheduler.LRScheduler
    known = {
        n: c
        for n, c in vars(torch.optim.lr_scheduler).items()
        if isinstance(c, type) and issubclass(c, base) and c is not base and n[0].isupper()
    }
    known.pop("ReduceLROnPlateau")  # it watches a logged value, which a config cannot name
    if name not in known:
        message = f"{key}.name: unknown scheduler '{name}'"
        raise UserError(with_suggestion(message, name, known))
    return known[name]


# Entries of a scheduler's config that only some have.
_TAKES = {"schedulers": ("SequentialLR", "ChainedScheduler"), "milestones": ("SequentialLR",)}


def parse_scheduler_to_instance(config: Any, optimizer: torch.optim.Optimizer, key: str = SCHEDULER) -> Any:
    """A bare scheduler; `SequentialLR` and `ChainedScheduler` take a list `schedulers`. `key` is where `config` is."""
    entries = _section(config, key, ("name", "args", "interval", "schedulers", "milestones", "warmup_steps"))
    name, args = entries["name"], dict(entries.get("args") or {})
    if name == "LambdaLR" or "lr_lambda" in args:
        raise UserError(f"{key}.name: {name} takes a function, which a config cannot hold")
    factory = _scheduler_class(name, key)
    nested = [
        parse_scheduler_to_instance(inner, optimizer, f"{key}.schedulers[{index}]")
        for index, inner in enumerate(entries.get("schedulers") or [])
    ]
    own: dict[str, Any] = {} if name == "ChainedScheduler" else {"optimizer": optimizer}
    if name in ("ChainedScheduler", "SequentialLR"):
        own["schedulers"] = nested
    if name == "SequentialLR":
        args.setdefault("milestones", [])
        args["milestones"] = entries.get("milestones") or args["milestones"]
        _check_milestones(args["milestones"], f"{key}.milestones")
    reserved = ("optimizer", "schedulers")
    check_arguments(factory, args, f"{key}.args", reserved)
    check_required(factory, args, f"{key}.args", reserved)
    return tried(lambda some: factory(**own, **some), args, f"{key}.args")


def _unread(entries: Mapping[str, Any]) -> list[str]:
    """Entries that the named scheduler does not take: those of another one, which an override of the name leaves."""
    return [entry for entry, takers in _TAKES.items() if entries.get(entry) and entries["name"] not in takers]


def _check_milestones(milestones: Any, key: str) -> None:
    """Raises UserError unless they are steps, each after the one before it."""
    whole = isinstance(milestones, list) and all(is_number(step) and step == int(step) for step in milestones)
    if not whole or any(later <= earlier for earlier, later in zip([-1, *milestones], milestones)):
        raise UserError(f"{key}: expected whole numbers that rise, from 0, got {shown(milestones)}")


def check_scheduler_lasts(config: Any, max_steps: int) -> None:
    """Raises UserError where a scheduler makes fewer steps than the run: OneCycleLR refuses to go on at its end."""
    entries = _plain(config) or {}
    if entries.get("name") != "OneCycleLR" or entries.get("interval") != "step":
        return
    args = entries.get("args") or {}
    steps = args.get("total_steps") or args.get("epochs", 0) * args.get("steps_per_epoch", 0)
    if steps < max_steps:
        raise UserError(f"{SCHEDULER}.args.total_steps: expected at least trainer.max_steps, {max_steps}, got {steps}")


def parse_scheduler(config: Any, optimizer: torch.optim.Optimizer) -> dict:
    """The scheduler in Lightning's form; `interval` is "epoch" (default) or "step"."""
    interval = config.get("interval") or "epoch"
    if interval not in ("epoch", "step"):
        raise UserError(f"{SCHEDULER}.interval: expected 'epoch' or 'step', got {shown(interval)}")
    return {"scheduler": parse_scheduler_to_instance(config, optimizer), "interval": interval}


def check_scheduler(config: Any, optimizer_config: Any) -> None:
    """Raises UserError for a scheduler's config that no step can be made with; needs no model."""
    if not _plain(optimizer_config):
        raise UserError(f"{SCHEDULER}: a scheduler needs an optimizer; {OPTIMIZER} is empty")
    named = _plain(config)
    for entry in _unread(named):
        takers = " and ".join(_TAKES[entry])
        threestudio.warn(f"{SCHEDULER}.{entry}: {named['name']} takes none, so it is not read; {takers} would")
    entries = _plain(optimizer_config)
    factory, args = _optimizer_class(entries["name"]), _with_tuples(entries.get("args") or {})
    groups = list((entries.get("params") or {"": {}}).values())
    members = [{"params": [nn.Parameter(torch.zeros(2, 2))], **_with_tuples(group or {})} for group in groups]

    def one_step() -> None:
        scheduler = parse_scheduler(config, factory(members, **args))["scheduler"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a scheduler's step before the optimizer's
            scheduler.step()

    try:
        one_step()
    except UserError:
        raise
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise UserError(f"{SCHEDULER}: {type(error).__name__}: {error}; got {_plain(config)}") from error
