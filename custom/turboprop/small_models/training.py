"""The loop that trains every small model: on any device, stopped at any moment, resumed to the same weights.

A step is a function of the weights, the step's number and the seed. All that it draws comes from one generator
keyed by (seed, step), so a training that was killed goes on from its last checkpoint and ends with the weights of
one that was not (on the same machine and number of threads).
"""

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from threestudio.utils.keyed_random import step_key

from .checkpoints import load_checkpoint, save_checkpoint
from .interruption import Interruption
from .schedule import warmup_stable_decay


@dataclass(frozen=True)
class TrainingOptions:
    """How a model is trained."""

    steps: int  # optimizer steps in all; with `minutes`, at most
    learning_rate: float  # on the plateau
    minutes: float | None = None  # of training: the rate falls in time to end with them; None: by steps alone
    warmup: int = 100  # steps of rising rate
    cooldown: float = 0.2  # the last share of the steps, in which the rate falls to nothing
    weight_decay: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    gradient_clip: float = 1.0  # largest norm of all gradients together
    average_decay: float = 0.999  # of the moving average of the weights, shorter at the start
    accumulate: int = 1  # batches a step
    bfloat16: bool = False  # autocast of the forward pass; weights and moments stay float32
    compiled: bool = False  # by torch.compile: a minute at the start, then fewer launches a step
    seed: int = 0
    report_every: int = 50  # steps between lines of progress
    figures_every: int = 1000  # steps between held-out figures and pictures
    figures_at: tuple[float, ...] = ()  # minutes of training at which figures are taken besides
    processor_time: bool = False  # minutes are those of the processor, which a busy machine does not lengthen
    checkpoint_every: int = 250  # steps


class Recipe(Protocol):
    """What is trained, and on what."""

    name: str
    modules: dict[str, nn.Module]  # those that are trained, on the device

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss [] of one batch, and figures [] to show. What it draws comes from `generator` (on the CPU)."""
        ...

    def figures(self, averages: dict[str, nn.Module], folder: Path, step: int) -> dict[str, float]:
        """Held-out figures of the averaged weights; may leave pictures in `folder`."""
        ...


@dataclass
class TrainingState:
    """All that a training needs to go on."""

    step: int = 0
    steps: int = 0  # of the run that wrote it
    seconds: float = 0.0  # spent in training so far, figures not counted
    history: list[dict[str, float]] = field(default_factory=list)  # held-out figures, by step


def compile_modules(modules: dict[str, nn.Module], device: torch.device) -> None:
    """Compiles the modules in place, whose names, weights and copies stay as they are.

    On CUDA their kernels are recorded in a graph: what Python launches bounds a small model's step there.
    """
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    for module in modules.values():
        module.compile(mode=mode, dynamic=False)


def average_weights(averages: dict[str, nn.Module], modules: dict[str, nn.Module], step: int, decay: float) -> None:
    """Moves the averages towards the weights; faster in the first steps, which are forgotten so."""
    decay = min(decay, (1 + step) / (10 + step))
    for name, module in modules.items():
        ours = [*averages[name].parameters(), *averages[name].buffers()]
        theirs = [*module.parameters(), *module.buffers()]
        pairs = [(a.detach(), b.detach()) for a, b in zip(ours, theirs)]
        numbers = [(a, b.to(a)) for a, b in pairs if a.is_floating_point()]
        if numbers:  # all in a few launches
            torch._foreach_lerp_([a for a, _ in numbers], [b for _, b in numbers], 1 - decay)
        for average, current in pairs:
            if not average.is_floating_point():
                average.copy_(current)


def plateau_end(steps: int, options: TrainingOptions) -> int:
    """The step at which the rate begins to fall."""
    return steps - round(options.cooldown * steps)


def _optimizer(parameters: Sequence[nn.Parameter], options: TrainingOptions) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters, lr=options.learning_rate, betas=options.betas, weight_decay=options.weight_decay, fused=True
    )


def _clear_gradients(parameters: Sequence[nn.Parameter], kept: bool) -> None:
    """Takes the gradients away. With `kept` they are tensors of zeros: what a recorded graph gives is added to them,
    for its own memory is written anew by the next batch."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter) if kept else None


def _one_step(
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    step: int,
    options: TrainingOptions,
) -> dict[str, float]:
    """One optimizer step; returns the figures of its last batch, the loss among them."""
    cooldown = options.steps - plateau_end(options.steps, options)
    rate = warmup_stable_decay(step, options.steps, options.learning_rate, options.warmup, cooldown)
    for group in optimizer.param_groups:
        group["lr"] = rate
    device = parameters[0].device
    recorded = options.compiled and device.type == "cuda"
    _clear_gradients(parameters, kept=recorded)
    for part in range(options.accumulate):
        key = step_key(options.seed, step * options.accumulate + part, stream=recipe.name)
        generator = torch.Generator().manual_seed(key % 2**63)
        if recorded:
            torch.compiler.cudagraph_mark_step_begin()  # what the graphs gave for the batch before is free
        with torch.autocast(device.type, torch.bfloat16, enabled=options.bfloat16):
            loss, figures = recipe.loss(step, generator)
        (loss / options.accumulate).backward()
    norm = nn.utils.clip_grad_norm_(parameters, options.gradient_clip)
    optimizer.step()
    # Values are asked for at the end alone: a GPU is waited for once a step.
    shown = {"loss": loss.detach(), **figures, "grad_norm": norm}
    values = {name: float(value) for name, value in shown.items()}
    if not math.isfinite(values["loss"]):
        raise FloatingPointError(f"{recipe.name}: the loss of step {step} is {values['loss']}")
    return {**values, "lr": rate}


def _shown(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _left(state: TrainingState, options: TrainingOptions, rate: float) -> str:
    """The text after the step: how many there are, and the minutes left at `rate` steps a second."""
    if options.minutes is not None:
        return f" ({max(0.0, options.minutes - state.seconds / 60):.0f} min left)"
    return f"/{options.steps} ({(options.steps - state.step) / rate / 60:.0f} min left)"


def train(
    recipe: Recipe, options: TrainingOptions, folder: Path, report: Callable[[str], None] = print
) -> tuple[dict[str, nn.Module], TrainingState]:
    """Trains to `options.steps`, from the checkpoint in `folder` if there is one.

    Args:
        recipe: what to train.
        options: how.
        folder: where checkpoints (last.pt, and plateau.pt from before the fall of the rate) and pictures go.
        report: takes lines of progress.

    Returns:
        The averaged weights of each module, and the state. Where SIGINT or SIGTERM came, the state's step is less
        than the state's `steps`.
    Raises FloatingPointError where the loss is not finite (the last checkpoint stays), and ValueError where the
    checkpoint is of another model or seed.
    """
    modules = recipe.modules
    averages = {name: copy.deepcopy(module).requires_grad_(False).eval() for name, module in modules.items()}
    parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
    optimizer = _optimizer(parameters, options)
    if options.compiled:
        compile_modules(modules, parameters[0].device)
    state = TrainingState()
    held: dict[str, Any] = {"modules": modules, "averages": averages, "optimizer": optimizer, "state": state}
    identity = {"recipe": recipe.name, "seed": options.seed}
    if (folder / "last.pt").is_file():
        load_checkpoint(folder / "last.pt", held, identity)
        ended = state.step == state.steps  # a rate that never falls has no other sign of it
        falling = ended or state.step > plateau_end(state.steps, options)
        if falling and not _same_end(state, options) and (folder / "plateau.pt").is_file():
            load_checkpoint(folder / "plateau.pt", held, identity)  # what was trained at a falling rate is left behind
            falling = False
        if falling and options.minutes is not None:
            options = dataclasses.replace(options, steps=state.steps, minutes=None)
        report(f"{recipe.name}: goes on from step {state.step}")
    state.steps = options.steps
    with Interruption() as interruption:
        _run(recipe, options, folder, held, parameters, identity, interruption, report)
    return averages, state


def _fall_begins_at(options: TrainingOptions) -> float:
    """Seconds of training after which the rate begins to fall; infinite where steps alone decide."""
    return math.inf if options.minutes is None else 60 * options.minutes * (1 - options.cooldown)


def _same_end(state: TrainingState, options: TrainingOptions) -> bool:
    """Whether a run whose rate falls already is to end where these options say."""
    if options.minutes is None:
        return state.steps == options.steps
    return state.seconds >= _fall_begins_at(options)


def _run(
    recipe: Recipe,
    options: TrainingOptions,
    folder: Path,
    held: dict[str, Any],
    parameters: Sequence[nn.Parameter],
    identity: dict[str, Any],
    interruption: Interruption,
    report: Callable[[str], None],
) -> None:
    """The steps from where `held` is to the end, or to an interruption."""
    state, first, begun = held["state"], held["state"].step, time.monotonic()
    clock = time.process_time if options.processor_time else time.monotonic
    while state.step < options.steps and not interruption.asked:
        if state.seconds >= _fall_begins_at(options) and state.step >= options.warmup:
            # as many steps for the fall as its share of all steps says; the same number in every later run
            steps = max(state.step + 1, round(state.step / (1 - options.cooldown)))
            options = dataclasses.replace(options, steps=steps, minutes=None)
            state.steps = options.steps
            save_checkpoint(folder / "plateau.pt", held, identity)
        start, before = clock(), state.seconds
        figures = _one_step(recipe, held["optimizer"], parameters, state.step, options)
        average_weights(held["averages"], held["modules"], state.step, options.average_decay)
        state.step += 1
        state.seconds += clock() - start
        done = state.step == options.steps
        if state.step % options.report_every == 0 or done:
            rate = (state.step - first) / (time.monotonic() - begun)
            report(f"{recipe.name} {state.step}{_left(state, options, rate)}: {_shown(figures)}; {rate:.2f} it/s")
        passed = any(before < 60 * minutes <= state.seconds for minutes in options.figures_at)
        if state.step % options.figures_every == 0 or passed or done:
            measured = recipe.figures(held["averages"], folder, state.step)
            state.history.append({"step": state.step, "minutes": state.seconds / 60, **measured})
            report(f"{recipe.name} {state.step}, held out: {_shown(measured)}")
        if state.step == plateau_end(options.steps, options):
            save_checkpoint(folder / "plateau.pt", held, identity)
        if state.step % options.checkpoint_every == 0 or done or interruption.asked:
            save_checkpoint(folder / "last.pt", held, identity)
    if interruption.asked and state.step < options.steps:
        report(f"{recipe.name}: stopped at step {state.step}; the same command goes on from there")
