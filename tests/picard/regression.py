"""A small problem for the engine: a regression, six optimizers, and its run by Picard iterations."""

from collections.abc import Callable

import torch
from turboprop.picard.engine.state import Change, Evaluation, Point, State, changed
from turboprop.picard.engine.thresholds import AdaptiveThreshold, FixedThreshold
from turboprop.picard.engine.updates import OptimizerUpdate
from turboprop.picard.engine.window import PicardWindow

SHAPES = {"weight": (4, 3), "bias": (4,), "unused": (2,)}
OPTIMIZERS = {
    "Adam": (torch.optim.Adam, {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-15}),
    "Adam, fused": (torch.optim.Adam, {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-15, "fused": True}),
    "AdamW": (torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.1}),
    "SGD": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "RMSprop": (torch.optim.RMSprop, {"lr": 0.01}),
    "Adamax": (torch.optim.Adamax, {"lr": 0.02}),
}


class Problem:
    """Regression whose data come from the step's own key; `seen` lists the steps whose gradient was computed."""

    def __init__(self, dtype=torch.float64):
        self.dtype, self.seen, self.nan_at = dtype, [], {}

    def start(self) -> State:
        generator = torch.Generator().manual_seed(7)
        parameters = {name: torch.randn(shape, generator=generator, dtype=self.dtype) for name, shape in SHAPES.items()}
        zeros = torch.zeros(2, dtype=self.dtype)
        return State(0, parameters, {"sum": zeros, "largest": zeros.clone(), "grid": zeros.clone()}, {})

    def evaluate(self, point: Point) -> Evaluation:
        self.seen.append(point.step)
        generator = torch.Generator().manual_seed(1000 + point.step)
        x = torch.randn(8, 3, generator=generator, dtype=self.dtype)
        y = torch.tanh(x @ torch.tensor([[1.0, -2.0, 0.5]] * 4, dtype=self.dtype).T)
        weight, bias = (point.parameters[name].clone().requires_grad_(True) for name in ("weight", "bias"))
        with torch.enable_grad():
            loss = (torch.tanh(x @ weight.T + bias + point.auxiliaries["grid"].sum()) - y).square().mean()
        gradients = dict(zip(("weight", "bias"), torch.autograd.grad(loss, (weight, bias))), unused=None)
        if self.nan_at.get(point.step, 0) > 0:
            self.nan_at[point.step] -= 1
            gradients["weight"] = gradients["weight"] * float("nan")
        size = gradients["bias"][:2].abs()
        changes = {"sum": Change("sum", size), "largest": Change("max", size)}
        if point.step % 5 == 4:  # as an occupancy grid is updated now and then, from the parameters and what it was
            changes["grid"] = Change("replace", 0.9 * point.auxiliaries["grid"] + 0.01 * point.parameters["bias"][:2])
        return Evaluation.of(gradients, changes)

    def evaluate_all(self, points):
        return [self.evaluate(point) for point in points]


def optimizer_of(name: str) -> torch.optim.Optimizer:
    kind, settings = OPTIMIZERS[name]
    groups = [{"params": [torch.nn.Parameter(torch.zeros(SHAPES[n]))]} for n in ("weight", "bias", "unused")]
    return kind(groups, foreach=False, **settings)


def update_of(name: str = "Adam") -> OptimizerUpdate:
    """With a rate that falls by the step, the second group's half as large."""
    optimizer = optimizer_of(name)

    def settings(step: int) -> list:
        rate = OPTIMIZERS[name][1]["lr"] * 0.99**step
        groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        return [{**group, "lr": factor * rate} for group, factor in zip(groups, (1.0, 0.5, 1.0))]

    return OptimizerUpdate(optimizer, [["weight"], ["bias"], ["unused"]], settings)


def advance(update: Callable, state: State, evaluation: Evaluation) -> None:
    update(state, evaluation.gradients if evaluation.finite else None)
    state.auxiliaries = changed(state.auxiliaries, evaluation.changes)


def picard(problem, update, steps, window, threshold, **options):
    if not isinstance(threshold, (FixedThreshold, AdaptiveThreshold)):
        threshold = FixedThreshold(threshold)
    engine = PicardWindow(problem.evaluate_all, update, window, threshold, **options)
    state, rounds = problem.start(), []
    while state.step < steps:
        result = engine.round(state, steps - state.step)
        for evaluation in result.accepted:
            advance(update, state, evaluation)
        rounds.append(result)
    return state, rounds


def assert_equal(a: State, b: State) -> None:
    assert a.step == b.step
    for one, other in ((a.parameters, b.parameters), (a.auxiliaries, b.auxiliaries)):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert a.moments.keys() == b.moments.keys()
    for name, moments in a.moments.items():
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(b.moments[name][k])) for k, v in moments.items())
