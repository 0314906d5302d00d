"""The engine on a small problem of its own: exactness, strides, what it leaves alone."""

import math
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from turboprop.picard.engine.distances import (
    mean_square_distance,
    squared_differences,
    update_distance,
)
from turboprop.picard.engine.guesses import CONTINUATIONS
from turboprop.picard.engine.state import Change, Evaluation, Point, State
from turboprop.picard.engine.thresholds import AdaptiveThreshold, FixedThreshold
from turboprop.picard.engine.updates import OptimizerUpdate, fused, group_settings
from turboprop.picard.engine.window import PicardWindow, adapted

from tests.picard.regression import OPTIMIZERS, SHAPES, Problem, advance, assert_equal, picard, update_of


def sequential(problem: Problem, update: OptimizerUpdate, steps: int) -> list[State]:
    state, states = problem.start(), [problem.start()]
    for _ in range(steps):
        advance(update, state, problem.evaluate(state))
        states.append(state.clone())
    return states


def distance(a: State, b: State) -> float:
    return max(float((a.parameters[n] - b.parameters[n]).abs().max()) for n in SHAPES)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_updates_are_the_optimizers_own_bit_for_bit(name, dtype):
    problem, update = Problem(dtype), update_of(name)
    state = problem.start()
    kind, settings = OPTIMIZERS[name]
    parameters = {n: torch.nn.Parameter(v.clone()) for n, v in state.parameters.items()}
    optimizer = kind([{"params": [parameters[n]]} for n in SHAPES], foreach=False, **settings)
    for step in range(12):
        evaluation = problem.evaluate(state)
        for group, values in zip(optimizer.param_groups, update.settings(step)):
            group["lr"] = values["lr"]
        for n, parameter in parameters.items():
            parameter.grad = evaluation.gradients[n]
        optimizer.step()
        update(state, evaluation.gradients)
        assert all(torch.equal(parameters[n], state.parameters[n]) for n in SHAPES)
    for n in ("weight", "bias"):
        kept = optimizer.state[parameters[n]]
        assert kept.keys() == state.moments[n].keys() and len(kept) > 0
        assert all(torch.equal(torch.as_tensor(kept[k]), torch.as_tensor(state.moments[n][k])) for k in kept)
    assert "unused" not in state.moments


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_quick_updates_are_near_and_leave_gradients_alone(name):
    """By the fused kernel where the optimizer has one; and exact updates after them are exact."""
    problem, update, alone = Problem(torch.float32), update_of(name), update_of(name)
    exact, quick = problem.start(), problem.start()
    for _ in range(12):
        evaluation = problem.evaluate(exact)
        kept = {n: None if g is None else g.clone() for n, g in evaluation.gradients.items()}
        update.quick(quick, evaluation.gradients)
        update.coast(quick.clone())
        alone(exact, evaluation.gradients)
        twin = exact.clone()
        update(twin, evaluation.gradients)
        alone(exact, evaluation.gradients)
        assert_equal(twin, exact)
        update.quick(quick, evaluation.gradients)
        assert all(g is None or torch.equal(g, kept[n]) for n, g in evaluation.gradients.items())
        assert all(torch.allclose(quick.parameters[n], exact.parameters[n], rtol=1e-5, atol=1e-6) for n in SHAPES)
        assert quick.moments.keys() == exact.moments.keys() and quick.step == exact.step
    assert all(quick.moments[n].keys() == exact.moments[n].keys() for n in exact.moments)


@pytest.mark.parametrize("crossed", ["parameter", "gradient", "spread gradient"])
def test_quick_updates_of_tensors_that_lie_in_another_order_are_near_too(crossed):
    """torch's fused kernels for processors take memory as it lies."""
    value, gradient = torch.randn(5, 6), torch.randn(5, 6)
    value = value.T.contiguous().T if crossed == "parameter" else value
    gradient = gradient.T.contiguous().T if crossed == "gradient" else gradient
    gradient = gradient[:, :1].expand(5, 6) if crossed == "spread gradient" else gradient
    update = OptimizerUpdate(torch.optim.Adam([torch.nn.Parameter(value)], lr=0.1), [["only"]])
    exact = State(0, {"only": value})
    quick = exact.clone()
    for _ in range(3):
        update(exact, {"only": gradient})
        update.quick(quick, {"only": gradient})
    assert torch.allclose(quick.parameters["only"], exact.parameters["only"], atol=1e-5)


def test_the_fused_kernel_is_taken_where_the_optimizer_leaves_the_choice():
    plain = {"lr": 0.1, "fused": None, "foreach": None, "capturable": False, "differentiable": False}
    assert fused(plain) == {**plain, "fused": True}
    for other in ({"fused": False}, {"foreach": True}, {"differentiable": True}, {"lr": torch.tensor(0.1)}):
        assert fused({**plain, **other}) == {**plain, **other}
    assert fused({"lr": 0.1}) == {"lr": 0.1}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("window, threshold", [(1, 2.0), (2, 0.0), (5, 0.0), (40, 0.0)])
def test_threshold_zero_and_window_one_are_training_step_by_step(name, window, threshold):
    whole = sequential(Problem(), update_of(name), 23)
    state, rounds = picard(Problem(), update_of(name), 23, window, threshold)
    assert_equal(state, whole[-1])
    assert sum(r.stride for r in rounds) == 23


def test_after_k_rounds_at_least_k_states_are_exact():
    """DreamPropeller, section 4.2: each round makes one more state that of the sequential run."""
    whole = sequential(Problem(), update_of(), 6)
    better: list[State] = []  # where the last round came to: guesses of the next one over the same window

    def evaluate(points):
        return Problem().evaluate_all(better or points)

    for exact in range(1, 7):
        engine = PicardWindow(evaluate, update_of(), 6, FixedThreshold(float("inf")))
        states = [Problem().start()]
        for evaluation in engine.round(states[0]).accepted:
            states.append(states[-1].clone())
            advance(update_of(), states[-1], evaluation)
        assert len(states) == 7  # whatever the guesses were, the whole window is accepted
        for step in range(exact + 1):
            assert_equal(states[step], whole[step])
        better = states[:-1]


def test_strides_are_between_one_and_the_window_and_the_last_window_is_cut():
    for window, threshold in ((4, 0.01), (7, 0.3), (7, 1e9)):
        problem = Problem()
        state, rounds = picard(problem, update_of(), 30, window, threshold)
        assert state.step == 30
        assert all(1 <= r.stride <= r.length <= window for r in rounds)
        assert all(r.length == min(window, 30 - r.step) for r in rounds)
        assert all(e <= threshold for r in rounds for e in r.errors[: r.stride - 1])
        assert all(r.stride == r.length or r.errors[r.stride - 1] > threshold for r in rounds)
    assert len(rounds) == math.ceil(30 / 7)  # any guess will do: all windows are full


def test_every_step_is_accepted_once_with_its_own_key():
    problem = Problem()
    _, rounds = picard(problem, update_of(), 30, 7, 0.3)
    accepted = [r.step + i for r in rounds for i in range(r.stride)]
    assert accepted == list(range(30))
    assert sorted(set(problem.seen)) == list(range(30)) and len(problem.seen) == sum(r.length for r in rounds)


def test_smaller_thresholds_end_nearer_to_the_sequential_run():
    whole = sequential(Problem(), update_of(), 60)[-1]
    ends = [distance(picard(Problem(), update_of(), 60, 8, t)[0], whole) for t in (1e9, 0.5, 0.01)]
    assert ends[0] > ends[1] > ends[2] > 0


def test_the_base_is_left_alone():
    """Its moments above all: an optimizer that has been handed them changes them in place."""
    problem, update = Problem(), update_of()
    base = sequential(problem, update, 5)[-1]
    kept, asked = base.clone(), []

    def evaluate(points):
        asked.extend(points)
        return problem.evaluate_all(points)

    engine = PicardWindow(evaluate, update, 6, FixedThreshold(1.0))
    result = engine.round(base)
    assert_equal(base, kept)
    following = engine.round(sequential(problem, update, 5 + result.stride)[-1])  # from another state: all are new
    assert following.step == 5 + result.stride
    assert_equal(base, kept)
    engine.round(base)
    assert_equal(base, kept)
    guesses = [point for point in asked if point is not base]
    assert len(guesses) == len(asked) - 2  # base was asked about twice
    assert not pointers(base) & set().union(*(pointers(guess) for guess in guesses))


def pointers(point: Point) -> set[int]:
    return {tensor.data_ptr() for tensor in point.parameters.values()}


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.5, 1e9])
def test_guesses_are_the_states_that_a_rounds_gradients_lead_to(threshold):
    """Those after the stride; guesses of later steps go on from where the rollout ended, moments too.

    None is the same memory as another.
    """
    problem, update = Problem(), update_of()
    asked, evaluations = [], []

    def evaluate(points):
        asked[:], evaluations[:] = points, problem.evaluate_all(points)
        return evaluations

    engine = PicardWindow(evaluate, update, 6, FixedThreshold(threshold), guess="zero_gradient")
    state, expected = problem.start(), {}
    for _ in range(8):
        result = engine.round(state)
        assert [point.step for point in asked] == list(range(state.step, state.step + 6)) and asked[0] is state
        for guess in asked[1:] if expected else []:
            rolled = expected[guess.step]
            assert all(torch.equal(rolled.parameters[n], guess.parameters[n]) for n in SHAPES)
            assert all(torch.equal(rolled.auxiliaries[n], guess.auxiliaries[n]) for n in rolled.auxiliaries)
        assert len({point.parameters["weight"].data_ptr() for point in asked}) == 6
        rolled, expected = state.clone(), {}
        for evaluation in evaluations:
            advance(update if threshold == 0 else update.quick, rolled, evaluation)
            expected[rolled.step] = rolled.clone()
        while len(expected) < 12:
            CONTINUATIONS["zero_gradient"](rolled, evaluations[-1].gradients, update)
            expected[rolled.step] = rolled.clone()
        for evaluation in result.accepted:
            advance(update, state, evaluation)


class Copies(TorchDispatchMode):
    """Counts the tensors of so many elements that are alive after each operation; shared memory counts once."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.seen, self.most = elements, [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.seen += [weakref.ref(t) for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        alive = [tensor for tensor in (reference() for reference in self.seen) if tensor is not None]
        self.seen = [weakref.ref(tensor) for tensor in alive]
        self.most = max(self.most, len({t.data_ptr() for t in alive if t.numel() == self.elements}))
        return result


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1e9])
def test_a_round_holds_two_copies_of_the_parameters_a_slot(threshold):
    """A slot's gradient, and its guess or what is rolled out there; and a few besides."""
    window, elements = 12, 1013
    update = OptimizerUpdate(torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.01), [["only"]])

    def evaluate(points):
        return [Evaluation.of({"only": torch.sin(point.parameters["only"] + point.step)}) for point in points]

    engine = PicardWindow(evaluate, update, window, FixedThreshold(threshold))
    with Copies(elements) as copies:
        state, result = State(0, {"only": torch.linspace(0, 1, elements)}), None
        while state.step < 3 * window:
            result = None
            result = engine.round(state)
            for evaluation in result.accepted:
                advance(update, state, evaluation)
                del evaluation
    two_states_with_moments, zeros, of_an_operation = 6, 1, 2
    assert copies.most <= 2 * window + two_states_with_moments + zeros + of_an_operation


def test_a_nan_at_a_guess_costs_that_slot_alone():
    """It is computed again at the state, where it is finite: the run ends as if nothing had happened."""
    clean, _ = picard(Problem(), update_of(), 30, 5, 0.0)
    problem = Problem()
    problem.nan_at = {9: 1}
    state, rounds = picard(problem, update_of(), 30, 5, 0.0)
    assert_equal(state, clean)
    problem = Problem()
    problem.nan_at = {9: 1}
    state, rounds = picard(problem, update_of(), 30, 5, 1e9)
    cut = [r for r in rounds if r.step + r.stride == 9]
    assert len(cut) == 1 and cut[0].stride < cut[0].length and state.step == 30
    assert [r.ended_by for r in rounds if r.ended_by] == ["a gradient that is not finite"]
    assert all(bool(torch.isfinite(v).all()) for v in state.parameters.values())


def test_a_nan_at_the_state_itself_skips_the_update():
    problem = Problem()
    problem.nan_at = {9: 10**9}
    whole = Problem()
    whole.nan_at = {9: 10**9}
    state, rounds = picard(problem, update_of(), 20, 5, 0.0)
    assert_equal(state, sequential(whole, update_of(), 20)[-1])
    assert int(state.moments["weight"]["step"]) == 19


@pytest.mark.parametrize("guess", ["copy", "zero_gradient", "last_gradient"])
@pytest.mark.parametrize("unit", ["update", "mean_square"])
def test_all_guesses_and_units_are_exact_at_zero(guess, unit):
    whole = sequential(Problem(), update_of(), 12)[-1]
    assert_equal(picard(Problem(), update_of(), 12, 4, 0.0, guess=guess, distance=unit)[0], whole)


def test_guesses_are_what_they_are_called():
    problem, update = Problem(), update_of()
    base = sequential(problem, update, 5)[-1]
    made = {}
    for guess, continuation in CONTINUATIONS.items():
        made[guess] = base.clone()
        continuation(made[guess], problem.evaluate(base).gradients, update)
        assert made[guess].step == 6
    assert torch.equal(made["copy"].parameters["weight"], base.parameters["weight"])
    moved = base.clone()
    update(moved, {"weight": torch.zeros(4, 3).double(), "bias": torch.zeros(4).double(), "unused": None})
    assert torch.equal(made["zero_gradient"].parameters["weight"], moved.parameters["weight"])
    moved = base.clone()
    update(moved, problem.evaluate(base).gradients)
    assert torch.equal(made["last_gradient"].parameters["weight"], moved.parameters["weight"])


def test_the_unit_is_the_learning_rate_of_the_group():
    a = {"x": torch.zeros(4), "y": torch.zeros(2), "still": torch.zeros(3)}
    b = {"x": torch.full((4,), 0.3), "y": torch.full((2,), 0.02), "still": torch.ones(3)}
    sums = squared_differences(a, b, [["x"], ["y"], ["still"]]).expand(2, 3)
    elements, rates = torch.tensor([4, 2, 3]), torch.tensor([[0.1, 0.01, 0.0], [1.0, 0.01, 0.0]])
    expected = torch.tensor([[9.0, 4.0, 0.0], [0.09, 4.0, 0.0]]).double()
    torch.testing.assert_close(update_distance(sums, elements, rates), expected)
    square = (4 * 0.3**2 + 2 * 0.02**2 + 3) / 9 * 1e6
    torch.testing.assert_close(mean_square_distance(sums, elements, rates), torch.full((2, 1), square).double())


@pytest.mark.parametrize(
    "distance, rates, ended_by",
    [
        ("update", (1.0, 1e-3), "slow"),
        ("update", (1e-3, 1.0), "fast.weight"),  # of a group without a name its first parameter's
        ("mean_square", (1.0, 1e-3), "all parameters"),
    ],
)
def test_a_round_names_the_group_that_has_ended_it(distance, rates, ended_by):
    """The group whose guess is the most learning rates away, however little that is in numbers."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    optimizer = torch.optim.SGD([groups[0], {**groups[1], "name": "slow"}], lr=1.0)
    settings = [{**group, "lr": rate} for group, rate in zip(group_settings(optimizer), rates)]
    update = OptimizerUpdate(optimizer, [["fast.weight"], ["slow.weight"]], lambda step: settings)

    def evaluate(points):
        # Of the group with rate 1 gradients are 0.1, of the other 100: in learning rates it has gone farther.
        sizes = dict(zip(("fast.weight", "slow.weight"), [0.1 if rate == 1.0 else 100.0 for rate in rates]))
        return [Evaluation.of({name: torch.full((3,), size) for name, size in sizes.items()}) for _ in points]

    start = State(0, {"fast.weight": torch.zeros(3), "slow.weight": torch.zeros(3)})
    engine = PicardWindow(evaluate, update, 4, FixedThreshold(1.0), distance=distance, guess="copy")
    result = engine.round(start)
    assert (result.stride, result.ended_by) == (1, ended_by)


def test_at_threshold_zero_bits_that_no_error_shows_end_a_round():
    """Of parameters so small that the square of their difference is nothing."""
    update = OptimizerUpdate(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-200), [["only"]])

    def evaluate(points):
        return [Evaluation.of({"only": torch.ones(1, dtype=torch.float64)}) for _ in points]

    engine = PicardWindow(evaluate, update, 3, FixedThreshold(0.0), distance="mean_square", guess="copy")
    result = engine.round(State(0, {"only": torch.zeros(1, dtype=torch.float64)}))
    assert (result.stride, result.errors[0], result.ended_by) == (1, 0.0, "other bits")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_squared_differences_are_summed_precisely_and_by_group(dtype):
    """Over more elements than a block; float32 sums in one piece would be wrong by 1e-3."""
    generator = torch.Generator().manual_seed(0)
    a = {name: torch.randn(size, generator=generator).to(dtype) for name, size in (("x", (3, 100_003)), ("y", ()))}
    b = {name: value + (0.3 + torch.rand(value.shape, generator=generator)).to(dtype) for name, value in a.items()}
    exact = [float((a[name] - b[name]).double().square().sum()) for name in ("y", "x")]
    found = squared_differences(a, b, [["y"], [], ["x"]]).tolist()
    assert [found[0], found[2]] == pytest.approx(exact, rel=1e-5) and found[1] == 0.0


def test_adaptive_thresholds_follow_the_mean_or_the_middle_of_the_window():
    errors = [1.0, 9.0, 2.0, 100.0]
    mean, median = AdaptiveThreshold(8.0, 0.75, "mean"), AdaptiveThreshold(8.0, 0.75, "median")
    mean.observe(errors)
    median.observe(errors)
    assert mean.value == pytest.approx(0.75 * 8 + 0.25 * 28) and median.value == pytest.approx(0.75 * 8 + 0.25 * 2)
    for rule in (mean, median):
        before = rule.value
        rule.observe([1.0, float("inf"), 2.0][: 3 if rule is mean else 2])
        assert rule.value == before


def test_the_published_rule_sets_the_stride_near_half_the_window():
    """The reference's observation: the moving average pins the speed."""
    rule = AdaptiveThreshold(1.0, 0.9, "median")
    _, rounds = picard(Problem(), update_of(), 300, 7, rule, distance="mean_square", guess="copy")
    late = [r.stride for r in rounds[10:]]
    assert 3.0 < sum(late) / len(late) < 6.5


def test_windows_that_adapt_follow_the_stride():
    assert [adapted(8, s, 32) for s in (1, 2, 3, 4, 7, 8)] == [2, 4, 6, 8, 8, 10]
    assert adapted(31, 31, 32) == 32 and adapted(2, 1, 32) == 2 and adapted(1, 1, 1) == 1
    _, fixed = picard(Problem(), update_of(), 200, 24, 0.02)
    _, adaptive = picard(Problem(), update_of(), 200, 24, 0.02, adapt=True)
    assert sum(r.length for r in adaptive) < 0.85 * sum(r.length for r in fixed)


def test_a_limit_below_one_is_refused():
    engine = PicardWindow(Problem().evaluate_all, update_of(), 3, FixedThreshold(0.0))
    with pytest.raises(ValueError, match="limit of a round: expected at least 1, got 0"):
        engine.round(Problem().start(), 0)


def test_a_change_of_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="expected replace, sum or max, got 'mean'"):
        Change("mean", torch.zeros(1)).after(torch.zeros(1))


class GridProblem(Problem):
    """The first step fills an occupancy grid; later ones change few of its cells."""

    def start(self) -> State:
        state = super().start()
        state.auxiliaries["occupied"] = torch.zeros(100, dtype=torch.bool)
        return state

    def evaluate(self, point: Point) -> Evaluation:
        evaluation = super().evaluate(point)
        occupied = point.auxiliaries["occupied"].clone()
        occupied[: 90 if point.step == 0 else 90 + point.step % 5] = True
        evaluation.changes["occupied"] = Change("replace", occupied)
        evaluation.extra = int(point.auxiliaries["occupied"].sum())
        return evaluation


def test_a_guess_with_an_empty_occupancy_grid_will_not_do():
    problem = GridProblem()
    engine = PicardWindow(problem.evaluate_all, update_of(), 6, FixedThreshold(1e30))
    base = problem.start()
    first = engine.round(base)
    assert first.stride == 1 and max(first.errors) < 1e30 and first.ended_by == "another occupancy grid"
    advance(engine.update, base, first.accepted[0])
    second = engine.round(base)
    assert second.stride == 6 and all(evaluation.extra >= 90 for evaluation in second.accepted)
    assert second.ended_by == ""
