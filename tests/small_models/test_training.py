"""The trainer of small models: resumed to the same weights, given more steps, stopped, and never fooled by a NaN."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from turboprop.small_models.schedule import warmup_stable_decay
from turboprop.small_models.training import TrainingOptions, train

OPTIONS = TrainingOptions(
    steps=12, learning_rate=0.01, warmup=2, cooldown=0.25, checkpoint_every=3, figures_every=4, report_every=100
)


class Line:
    """Fits y = 3 x - 1 from noisy draws."""

    name = "line"

    def __init__(self, stop_at: int = -1, nan_at: int = -1) -> None:
        torch.manual_seed(0)
        self.modules: dict[str, nn.Module] = {"line": nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))}
        self.stop_at, self.nan_at = stop_at, nan_at

    def loss(self, step: int, generator: torch.Generator):
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        x = torch.randn(8, 1, generator=generator)
        y = 3 * x - 1 + 0.1 * torch.randn(8, 1, generator=generator)
        loss = (self.modules["line"](x) - y).square().mean()
        return loss * (float("nan") if step == self.nan_at else 1.0), {}

    def figures(self, averages: dict[str, nn.Module], folder: Path, step: int):
        x = torch.linspace(-1, 1, 9)[:, None]
        return {"error": float((averages["line"](x) - 3 * x + 1).square().mean())}


def weights(modules: dict[str, nn.Module]) -> list[torch.Tensor]:
    return [p.detach().clone() for module in modules.values() for p in module.parameters()]


def quiet(line: str) -> None:
    pass


def test_rates_rise_stay_and_fall():
    rates = [warmup_stable_decay(step, 20, 1.0, warmup=4, cooldown=5) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:15] == [1.0] * 11
    assert rates[15:] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_compiled_modules_train_to_the_same_weights(tmp_path):
    plain, _ = train(Line(), OPTIONS, tmp_path / "plain", quiet)
    recipe = Line()
    compiled, state = train(recipe, replace(OPTIONS, compiled=True), tmp_path / "compiled", quiet)
    assert recipe.modules["line"]._compiled_call_impl is not None
    assert state.step == 12 and list(compiled["line"].state_dict()) == list(plain["line"].state_dict())
    for ours, theirs in zip(weights(compiled), weights(plain)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_stopped_and_resumed_ends_with_the_same_weights(tmp_path):
    whole, state = train(Line(), OPTIONS, tmp_path / "whole", quiet)
    assert state.step == 12 and [entry["step"] for entry in state.history] == [4, 8, 12]
    _, stopped = train(Line(stop_at=6), OPTIONS, tmp_path / "parts", quiet)
    assert stopped.step == 7  # it ends its step and saves
    parts, state = train(Line(), OPTIONS, tmp_path / "parts", quiet)
    assert state.step == 12 and [entry["step"] for entry in state.history] == [4, 8, 12]
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(parts)))


def test_a_kill_costs_the_steps_since_the_last_checkpoint_and_changes_nothing(tmp_path):
    whole, _ = train(Line(), OPTIONS, tmp_path / "whole", quiet)
    with pytest.raises(FloatingPointError, match="loss of step 7 is nan"):
        train(Line(nan_at=7), OPTIONS, tmp_path / "killed", quiet)
    lines: list[str] = []
    again, _ = train(Line(), OPTIONS, tmp_path / "killed", lines.append)
    assert "goes on from step 6" in lines[0]
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again)))


def test_more_steps_go_on_from_the_plateau(tmp_path):
    more = replace(OPTIONS, steps=20)
    whole, _ = train(Line(), more, tmp_path / "whole", quiet)
    train(Line(), OPTIONS, tmp_path / "longer", quiet)  # its rate falls from step 9 on
    lines: list[str] = []
    longer, state = train(Line(), more, tmp_path / "longer", lines.append)
    assert "goes on from step 9" in lines[0] and state.step == 20
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(longer)))


def test_minutes_fix_the_steps_when_the_rate_begins_to_fall(tmp_path, monkeypatch):
    seconds = iter(range(100_000))
    monkeypatch.setattr("turboprop.small_models.training.time.monotonic", lambda: float(next(seconds)))
    timed = replace(OPTIONS, steps=10**9, minutes=1.0)  # a step takes one second or two, the fall a quarter of all
    _, state = train(Line(), timed, tmp_path / "timed", quiet)
    assert 20 <= state.steps <= 80 and state.step == state.steps
    by_steps, _ = train(Line(), replace(OPTIONS, steps=state.steps), tmp_path / "steps", quiet)
    again, state = train(Line(), timed, tmp_path / "timed", quiet)  # it is done already
    assert all(torch.equal(a, b) for a, b in zip(weights(by_steps), weights(again)))
    lines: list[str] = []
    _, longer = train(Line(), replace(timed, minutes=2.0), tmp_path / "timed", lines.append)
    assert f"goes on from step {round(0.75 * state.steps)}" in lines[0] and longer.step > 1.5 * state.step


def test_stopped_while_the_rate_falls_minutes_end_where_they_would_have(tmp_path, monkeypatch):
    seconds = iter(range(100_000))
    monkeypatch.setattr("turboprop.small_models.training.time.monotonic", lambda: float(next(seconds)))
    timed = replace(OPTIONS, steps=10**9, minutes=1.0)
    whole, state = train(Line(), timed, tmp_path / "whole", quiet)
    _, stopped = train(Line(stop_at=state.steps - 4), timed, tmp_path / "parts", quiet)
    assert stopped.step < stopped.steps == state.steps
    parts, _ = train(Line(), timed, tmp_path / "parts", quiet)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(parts)))


def test_two_batches_a_step_are_one_of_twice_the_size_in_gradient(tmp_path):
    torch.manual_seed(1)
    single, _ = train(Line(), replace(OPTIONS, steps=3), tmp_path / "one", quiet)
    double, _ = train(Line(), replace(OPTIONS, steps=3, accumulate=2), tmp_path / "two", quiet)
    assert not all(torch.equal(a, b) for a, b in zip(weights(single), weights(double)))


def test_the_average_follows_the_weights(tmp_path):
    recipe = Line()
    averages, _ = train(recipe, replace(OPTIONS, steps=400, average_decay=0.9), tmp_path, quiet)
    assert recipe.figures(averages, tmp_path, 0)["error"] < 0.15
    assert not any(p.requires_grad for p in averages["line"].parameters())


def test_another_seeds_checkpoint_is_refused(tmp_path):
    train(Line(), OPTIONS, tmp_path, quiet)
    with pytest.raises(ValueError, match="a checkpoint of seed 0, expected 5"):
        train(Line(), replace(OPTIONS, seed=5), tmp_path, quiet)


def test_figures_are_taken_at_minutes_of_training_by_the_processors_clock(tmp_path, monkeypatch):
    seconds = iter(range(100_000))
    monkeypatch.setattr("turboprop.small_models.training.time.process_time", lambda: 6.0 * next(seconds))
    timed = replace(OPTIONS, steps=10**9, minutes=1.0, figures_every=10**9, figures_at=(0.25, 0.5))
    _, state = train(Line(), replace(timed, processor_time=True), tmp_path, quiet)  # a step takes a tenth of a minute
    assert [entry["minutes"] for entry in state.history] == pytest.approx([0.3, 0.5, 1.1], abs=0.11)
    assert [entry["step"] for entry in state.history] == [3, 5, state.steps]


def test_a_rate_that_never_falls_ends_and_is_not_trained_on(tmp_path, monkeypatch):
    seconds = iter(range(100_000))
    monkeypatch.setattr("turboprop.small_models.training.time.monotonic", lambda: float(next(seconds)))
    constant = replace(OPTIONS, steps=10**9, minutes=0.5, cooldown=0.0)
    whole, state = train(Line(), constant, tmp_path, quiet)
    again, resumed = train(Line(), constant, tmp_path, quiet)
    assert resumed.step == state.step and len(resumed.history) == len(state.history)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again)))
    _, longer = train(Line(), replace(constant, minutes=1.0), tmp_path, quiet)
    assert longer.step > 1.5 * state.step
