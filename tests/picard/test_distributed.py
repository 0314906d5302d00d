"""The engine over several processes, each with a shard: the same as in one, and how much they tell one another."""

import pytest
import torch
from turboprop.picard.engine.distances import BLOCK
from turboprop.picard.engine.state import Change, Evaluation, Point, State
from turboprop.picard.engine.thresholds import FixedThreshold
from turboprop.picard.engine.updates import OptimizerUpdate
from turboprop.picard.engine.window import PicardWindow
from turboprop.picard.executors import Distributed, check_agreement, checksum
from turboprop.picard.processes.accumulated import Accumulated
from turboprop.picard.processes.communication import Communication
from turboprop.picard.processes.exchange import gather_moments, gather_parameters
from turboprop.picard.processes.sharding import Sharding
from turboprop.picard.processes.shards import Shards
from turboprop.picard.system_buffers import SystemBuffers

from tests.picard.processes import in_processes
from tests.picard.regression import Problem, advance, assert_equal, picard

STEPS = 21
ALIGNED = 16  # elements; fused kernels take so many at once, and one by one those after the last of them


class WideProblem(Problem):
    """The same, with float32 parameters of many shapes beside: a grid that is cut anywhere, a scalar, an empty one."""

    extra = {"grid": (23, 2), "scalar": (), "empty": (0, 3)}

    def start(self) -> State:
        state = super().start()
        generator = torch.Generator().manual_seed(8)
        state.parameters |= {name: torch.randn(shape, generator=generator) for name, shape in self.extra.items()}
        return state

    def evaluate(self, point: Point) -> Evaluation:
        evaluation = super().evaluate(point)
        generator = torch.Generator().manual_seed(5000 + point.step)
        for name, shape in self.extra.items():
            pull = torch.randn(shape, generator=generator)
            evaluation.gradients[name] = 0.1 * point.parameters[name] + pull
        if point.step in (6, 7):  # a loss may leave a parameter out now and then
            evaluation.gradients["grid"] = None
        return evaluation


def update_for(problem: Problem) -> OptimizerUpdate:
    """Groups with rates of their own, one of them without any parameter."""
    groups = [[name] for name in problem.start().parameters] + [[]]
    rows = [{"params": [torch.nn.Parameter(torch.zeros(1)) for _ in names], "lr": 0.02} for names in groups[:-1]]
    optimizer = torch.optim.Adam(rows, betas=(0.9, 0.99), eps=1e-15)
    fixed = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]

    def settings(step: int) -> list:
        return [{**group, "lr": 0.02 * 0.99**step / (1 + index)} for index, group in enumerate(fixed)]

    return OptimizerUpdate(optimizer, groups[:-1], settings)


def run_picard(window: int, threshold: float, dtype=None, block: int = ALIGNED, nan_at: tuple = ()) -> dict:
    """A rank's side of a run, which ends in the whole state."""
    communication, problem = Communication(), WideProblem()
    problem.nan_at = dict(nan_at)
    update, whole = update_for(problem), problem.start()
    sharding = Sharding(whole.parameters, communication.size, block)
    executor = Distributed(problem.evaluate_all, communication, sharding, dtype)
    engine = PicardWindow(executor, update, window, FixedThreshold(threshold), total=communication.sum)
    state, rounds, sent = sharding.part_of_state(whole, communication.rank), [], []
    while state.step < STEPS:
        before = communication.sent
        result = engine.round(state, STEPS - state.step)
        sent.append(communication.sent - before)
        for evaluation in result.accepted:
            advance(update, state, evaluation)
        rounds.append((result.step, result.length, result.stride, result.errors, result.ended_by))
    parameters = gather_parameters(communication, sharding, state.parameters)
    moments = gather_moments(communication, sharding, state.moments)
    check_agreement(communication, parameters, state.step)
    state = State(state.step, parameters, state.auxiliaries, moments)
    return {"state": state, "rounds": rounds, "computed": len(problem.seen), "sent": sent}


def alone(window: int, threshold: float, nan_at: tuple = ()) -> tuple:
    problem = WideProblem()
    problem.nan_at = dict(nan_at)
    state, rounds = picard(problem, update_for(problem), STEPS, window, threshold)
    return state, [(r.step, r.length, r.stride, r.errors, r.ended_by) for r in rounds], len(problem.seen)


@pytest.mark.parametrize(
    "processes, window, threshold, nan_at",
    [(2, 5, 0.3, ()), (3, 5, 0.3, ((9, 1),)), (3, 2, 0.0, ((9, 10**9),)), (2, 1, 0.3, ()), (13, 4, 0.3, ())],
)
def test_processes_end_as_one(processes, window, threshold, nan_at, tmp_path):
    """Also with fewer slots than ranks, with shards without any element, and where a gradient is not finite."""
    state, rounds, computed = alone(window, threshold, nan_at)
    results = in_processes(processes, run_picard, tmp_path, window, threshold, None, ALIGNED, nan_at)
    for result in results:
        assert_equal(result["state"], state)
        assert [r[:3] for r in result["rounds"]] == [r[:3] for r in rounds]
        for found, expected in zip(result["rounds"], rounds):  # errors are summed by other pieces here
            assert found[3] == pytest.approx(expected[3], rel=1e-6)
    each = [result["computed"] for result in results]
    assert sum(each) == computed
    if window >= processes:
        assert min(each) >= computed // (2 * processes)  # nobody idles


def test_errors_too_are_the_same_where_cuts_are_as_they_are_summed(tmp_path):
    state, rounds, _ = alone(5, 0.3)
    for result in in_processes(3, run_picard, tmp_path, 5, 0.3, None, BLOCK):
        assert_equal(result["state"], state)
        assert result["rounds"] == rounds


def test_gradients_may_travel_in_half_precision(tmp_path):
    one, other = in_processes(2, run_picard, tmp_path, 5, 0.3, torch.bfloat16)
    assert_equal(one["state"], other["state"])  # rounded the same for all, the rank that computed them too
    state, _, _ = alone(5, 0.3)
    assert torch.allclose(one["state"].parameters["weight"], state.parameters["weight"], atol=0.05)
    assert not torch.equal(one["state"].parameters["weight"], state.parameters["weight"])
    full = in_processes(2, run_picard, tmp_path, 5, 0.3)
    assert one["sent"][0] < full[0]["sent"][0]


def disagree() -> str:
    communication = Communication()
    parameters = {"a": torch.zeros(3), "b": torch.tensor([1.0, 1.0 + communication.rank * 2.0**-23])}
    try:
        check_agreement(communication, parameters, 7)
    except RuntimeError as error:
        return str(error)
    return ""


def test_ranks_that_differ_are_named(tmp_path):
    message = "picard: at step 7 the parameters of rank 1 are not those of rank 0"
    assert in_processes(2, disagree, tmp_path) == [message, message]


ELEMENTS = 40_000  # of a problem whose parameters are most of what travels


def bytes_of_a_round(window: int, half: bool = False) -> int:
    """That this rank sends in the second round."""
    communication = Communication()
    whole = State(0, {"grid": torch.zeros(ELEMENTS // 2, 2)})
    sharding = Sharding(whole.parameters, communication.size, block=1)

    def evaluate(points: list) -> list:
        return [Evaluation.of({"grid": torch.full((ELEMENTS // 2, 2), 0.1 + point.step)}) for point in points]

    executor = Distributed(evaluate, communication, sharding, torch.bfloat16 if half else None)
    update = OptimizerUpdate(torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))]), [["grid"]])
    engine = PicardWindow(executor, update, window, FixedThreshold(1e9), total=communication.sum)
    state = sharding.part_of_state(whole, communication.rank)
    for evaluation in engine.round(state).accepted:
        advance(update, state, evaluation)
    before = communication.sent
    engine.round(state)
    return communication.sent - before


def test_what_a_rank_sends_does_not_grow_with_the_window(tmp_path):
    """A slot of its own costs a rank the parameters once and the gradients once, whatever the others do."""
    for size in (2, 4, 8):
        for sent in in_processes(size, bytes_of_a_round, tmp_path, size):
            assert sent == pytest.approx(2 * 4 * ELEMENTS * (size - 1) / size, rel=0.05)
    for window in (4, 8):
        for sent in in_processes(2, bytes_of_a_round, tmp_path, window):
            assert sent == pytest.approx(4 * ELEMENTS * window / 2, rel=0.05)
    for sent in in_processes(2, bytes_of_a_round, tmp_path, 2, True):
        assert sent == pytest.approx((4 + 2) * ELEMENTS / 2, rel=0.05)


@pytest.mark.parametrize("change", [lambda t: t.flip(0), lambda t: t + 2.0**-20, lambda t: -t])
def test_checksums_tell_bits_apart(change):
    value = torch.tensor([1.0, 2.0, 3.0])
    assert checksum({"a": value}) == checksum({"a": value.clone()})
    assert checksum({"a": value}) != checksum({"a": change(value)})


def test_checksums_are_of_tensors_of_any_kind():
    kinds = (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool)
    tensors = {str(dtype): torch.tensor([[1, 0, 3], [0, 5, 6]]).to(dtype) for dtype in kinds}
    tensors |= {"scalar": torch.tensor(2.0), "empty": torch.empty(0, 3), "crossed": torch.rand(4, 3).T}
    whole = checksum(tensors)
    for name, value in tensors.items():
        changed = value.clone().contiguous()
        if changed.numel():
            changed.view(-1)[-1] = 0
            assert checksum({**tensors, name: changed}) != whole


class Counting(torch.nn.Module):
    accumulated_buffers = {"total": "sum", "largest": "max"}

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.full((7, 3), 0.1))
        self.register_buffer("largest", torch.zeros(5))
        self.register_buffer("other", torch.ones(2))


def added_at(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    changes = {"total": Change("sum", torch.rand(7, 3, generator=generator))}
    return changes if step % 4 == 3 else {**changes, "largest": Change("max", torch.rand(5, generator=generator))}


def accumulate(rounds: tuple) -> dict:
    communication, module = Communication(), Counting()
    accumulated = Accumulated(communication)
    buffers = SystemBuffers(module)
    for base, length, stride in rounds:
        accumulated.begin_round()
        for step in range(base + communication.rank, base + length, communication.size):
            accumulated.of_slot(step, added_at(step))
        for step in range(base, base + stride):
            accumulated.accept(step, buffers)
        if base == 5:
            accumulated.add_up(buffers)
            accumulated.add_up(buffers)  # there is nothing more
    accumulated.add_up(buffers)
    return {name: value.clone() for name, value in buffers.now().items()}


@pytest.mark.parametrize("processes", [2, 3])
def test_what_accepted_steps_add_is_added_up_in_their_order(processes, tmp_path):
    rounds = ((0, 4, 3), (3, 4, 2), (5, 4, 4), (9, 4, 1), (10, 2, 2))
    module = Counting()
    buffers, alone = SystemBuffers(module), Accumulated(None)
    for step in range(12):
        alone.of_slot(step, added_at(step))
        alone.accept(step, buffers)
    for found in in_processes(processes, accumulate, tmp_path, rounds):
        assert all(torch.equal(found[name], value) for name, value in buffers.now().items())
    assert set(buffers.auxiliaries()) == {"other"}
    assert float(buffers.slot_values({})["total"].abs().max()) == 0


def parameters_of(seed: int) -> dict:
    shapes = {"grid": (9, 3), "scalar": (), "bias": (4,)}
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def adam(parameters: dict) -> torch.optim.Adam:
    grid, *others = parameters.values()
    return torch.optim.Adam([{"params": [grid], "lr": 0.1}, {"params": others}], lr=0.02)


def move_shards() -> dict:
    """Steps of a plain optimizer and of shards side by side; what is changed where they are gathered is changed in
    both. Returns whether they were the same there, and what a rank says of an exchange that it did not expect."""
    communication = Communication()
    plain, sharded = parameters_of(1), parameters_of(1)
    optimizers = adam(plain), adam(sharded)
    shards = Shards(communication, optimizers[1], [["grid"], ["scalar", "bias"]])
    same = []
    for step in range(12):
        shards.base(sharded, step, {})
        pulls = {name: parameter.detach().clone() for name, parameter in parameters_of(100 + step).items()}
        for name, parameter in plain.items():
            parameter.grad = pulls[name].clone()
        optimizers[0].step()
        shards.advance(step, shards.sharding.part(pulls, communication.rank))
        assert not optimizers[1].state
        if step % 4 == 1:
            shards.gather_parameters()
            same.append(all(torch.equal(sharded[name], plain[name]) for name in plain) and not optimizers[1].state)
        if step % 4 == 3:
            shards.gather()
            shards.gather()  # there is nothing more
            kept = [optimizer.state_dict()["state"] for optimizer in optimizers]
            values = [(of[key], kept[1][i][key]) for i, of in kept[0].items() for key in of]
            same.append(len(values) == 9 and all(torch.equal(*pair) for pair in values))
        with torch.no_grad():
            if step % 2 == 1:
                plain["grid"].clamp_(-0.5, 0.5)
                sharded["grid"].clamp_(-0.5, 0.5)
    shards.base(sharded, 12, {})
    try:
        shards.base(parameters_of(2), 13, {})
    except RuntimeError as error:
        return {"same": same, "message": str(error)}
    return {"same": same, "message": ""}


@pytest.mark.parametrize("processes", [2, 3])
def test_shards_move_as_a_plain_optimizer_does(processes, tmp_path):
    for found in in_processes(processes, move_shards, tmp_path):
        assert found["same"] == [True] * 6
        assert "at step 13 parameters were exchanged for others, which no module's" in found["message"]
