"""The small loop that trains the world's own models: Adam, cosine decay, moving average, progress."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

LossFunction = Callable[[int], tuple[Tensor, dict[str, float]]]  # step -> loss, figures to show


def cosine_learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warmup to `peak`, then half a cosine to a hundredth of it."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def average_models(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Frozen copies that hold the moving average of the weights."""
    return [copy.deepcopy(module).requires_grad_(False) for module in modules]


def update_average(averages: list[nn.Module], modules: list[nn.Module], step: int, decay: float) -> None:
    """Exponential moving average, shorter at the start so that it forgets the first weights."""
    decay = min(decay, (1 + step) / (10 + step))
    for average, module in zip(averages, modules):
        for a, p in zip(average.parameters(), module.parameters()):
            a.lerp_(p.detach(), 1 - decay)


def fit(
    name: str,
    modules: list[nn.Module],
    loss_function: LossFunction,
    steps: int,
    learning_rate: float,
    warmup: int = 100,
    average_decay: float = 0.999,
    report: Callable[[str], None] = print,
    every: int = 100,
    on_report: Callable[[int, list[nn.Module]], None] | None = None,
) -> list[nn.Module]:
    """Train `modules` for `steps` steps and return the moving averages of their weights."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    averages = average_models(modules)
    start = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine_learning_rate(step, steps, learning_rate, warmup)
        loss, figures = loss_function(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        update_average(averages, modules, step, average_decay)
        if (step + 1) % every == 0 or step + 1 == steps:
            spent = time.monotonic() - start
            left = spent / (step + 1) * (steps - step - 1)
            shown = ", ".join(f"{key} {value:.4f}" for key, value in figures.items())
            report(f"{name} {step + 1}/{steps}: {shown}, {spent:.0f} s, {left:.0f} s left")
            if on_report is not None:
                on_report(step + 1, averages)
    return averages
