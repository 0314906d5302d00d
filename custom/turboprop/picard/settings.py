"""`system.picard`: keys, their defaults, and DreamPropeller's own names for them."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import OmegaConf

from threestudio.utils.config import parse_structured
from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import check_choice, expected, fits

from .engine.distances import DISTANCES
from .engine.guesses import CONTINUATIONS
from .engine.thresholds import STATISTICS, AdaptiveThreshold, FixedThreshold
from .engine.updates import OptimizerUpdate
from .engine.window import Evaluate, PicardWindow

EXCHANGE_TYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
RULES = ("fixed", *STATISTICS)
EXECUTORS = ("in_process", "experimental_batched")
LEARNING_TEACHER = ("local", "state")


@dataclass
class PicardConfig:
    window: int = 8  # gradients a round
    # of the threshold: fixed, or adaptive to the windows' errors as in DreamPropeller, to their mean or to the one in
    # the middle of the window (median)
    rule: str = "fixed"
    threshold: float = 3.0  # largest error of a guess whose gradient is accepted; where the rule is adaptive, at first
    distance: str = "update"  # unit of errors: update (squared learning rates) or mean_square (DreamPropeller's, 1e-6)
    ema_decay: float = 0.9  # adaptive rules: share of the threshold that stays, each round
    guess: str = "zero_gradient"  # of states new in a window: zero_gradient, last_gradient or copy
    adapt_window: bool = False  # smaller windows after short strides, larger ones, up to `window`, after full ones
    # in_process: slots one after another; experimental_batched: one call of the teacher for all slots
    executor: str = "in_process"
    exchange: str = "float32"  # type of gradients on their way between processes: float32, bfloat16 or float16
    # weights that learn from each step's renders (VSD's second teacher): local, each process has its own, or state, as
    # all others: exact, and exchanged
    learning_teacher: str = "local"
    beside: str = ""  # earlier name of learning_teacher, which it goes before; "": not given
    check_every: int = 100  # rounds between two checks that all processes have the same buffers
    dead_after: float = 20.0  # seconds without a sign of life of a process until it counts as dead and ends the run
    slow_ratio: float = 1.5  # a process whose gradients take so many times the others' for 10 rounds running is named
    report: bool = True  # write save/picard.csv and draw save/picard.png when training ends
    # DreamPropeller's block of that name: P, threshold, ema_decay, adaptivity_type. What it says goes before the above,
    # with its distance and its guesses.
    speedup: dict = field(default_factory=dict)


SPEEDUP = {"P": "window", "threshold": "threshold", "ema_decay": "ema_decay", "adaptivity_type": "rule"}


def picard_config(given: Any) -> PicardConfig:
    """Raises ValueError for an impossible value, naming the key."""
    _refuse_earlier_names(given)
    config: PicardConfig = parse_structured(PicardConfig, given)
    config.learning_teacher = config.beside or config.learning_teacher
    if config.speedup:
        config = with_speedup(config, config.speedup)
    check_choice("system.picard.rule", config.rule, RULES)
    check_choice("system.picard.distance", config.distance, DISTANCES)
    check_choice("system.picard.guess", config.guess, CONTINUATIONS)
    check_choice("system.picard.executor", config.executor, EXECUTORS)
    check_choice("system.picard.exchange", config.exchange, EXCHANGE_TYPES)
    check_choice("system.picard.learning_teacher", config.learning_teacher, LEARNING_TEACHER)
    _check("dead_after", config.dead_after, "at least 5 (seconds)", lambda value: value >= 5)
    _check("slow_ratio", config.slow_ratio, "above 1", lambda value: value > 1)
    _check("check_every", config.check_every, "at least 1", lambda value: value >= 1)
    _check("window", config.window, "at least 1", lambda value: value >= 1)
    _check("threshold", config.threshold, "at least 0", lambda value: value >= 0)
    _check("ema_decay", config.ema_decay, "from 0 to 1", lambda value: 0 <= value <= 1)
    return config


def _refuse_earlier_names(given: Any) -> None:
    if "batched_slots" in given:
        raise UserError("system.picard.batched_slots: there is no such key any more; a smaller window does")
    if given.get("executor") == "batched":
        raise UserError("system.picard.executor: batched is experimental; its name is experimental_batched now")


def with_speedup(config: Any, block: Mapping[str, Any]) -> Any:
    """The config with what a `speedup` block of DreamPropeller says."""
    unknown = sorted(set(block) - set(SPEEDUP))
    if unknown:
        raise UserError(f"system.picard.speedup.{unknown[0]}: expected one of {', '.join(SPEEDUP)}")
    config = config.copy()
    config.distance, config.guess, config.rule = "mean_square", "copy", "median"
    hints = typing.get_type_hints(PicardConfig)
    for name, value in block.items():
        if not fits(value, hints[SPEEDUP[name]]):
            raise expected(f"system.picard.speedup.{name}", hints[SPEEDUP[name]], value)
        OmegaConf.update(config, SPEEDUP[name], value)
    return config


def _check(key: str, value: float, expected: str, holds: Callable[[float], bool]) -> None:
    if not holds(value):
        raise UserError(f"system.picard.{key}: expected {expected}, got {value}")


def build_window(config: PicardConfig, evaluate: Evaluate, update: OptimizerUpdate) -> PicardWindow:
    if config.rule == "fixed":
        threshold: Any = FixedThreshold(config.threshold)
    else:
        threshold = AdaptiveThreshold(config.threshold, config.ema_decay, config.rule)
    return PicardWindow(evaluate, update, config.window, threshold, config.distance, config.guess, config.adapt_window)
