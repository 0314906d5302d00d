"""Local weights: in one process they follow the accepted slots, in several all of their own."""

import pytest
import torch
from torch import nn
from turboprop.picard.engine.updates import OptimizerUpdate
from turboprop.picard.local_weights import LocalWeights, local_weight_names, local_weights_note, split_groups
from turboprop.picard.settings import picard_config

from threestudio.systems.adan import Adan


class Learner(nn.Linear):
    learns_from_renders = True


class System(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scene = nn.Linear(2, 2)
        self.guidance = nn.ModuleDict({"teacher": Learner(2, 1), "frozen": nn.Linear(1, 1)})


def start(kind: type = torch.optim.AdamW, rates=(0.1, 0.05)) -> tuple[dict, torch.optim.Optimizer]:
    torch.manual_seed(0)
    parameters = {name: nn.Parameter(torch.randn(3)) for name in ("down", "up")}
    groups = [{"params": [p], "lr": rate} for p, rate in zip(parameters.values(), rates)]
    return parameters, kind(groups)


def gradient(value: torch.Tensor, step: int) -> torch.Tensor:
    return (value - torch.tensor([0.1, 0.2, 0.3])) * (1 + step % 3) + 0.01 * step


def sequential(steps: int, kind: type = torch.optim.AdamW) -> dict[str, torch.Tensor]:
    parameters, optimizer = start(kind)
    for step in range(steps):
        for parameter in parameters.values():
            parameter.grad = gradient(parameter.data, step)
        optimizer.step()
    return {name: parameter.data for name, parameter in parameters.items()}


def rounds(
    accepted: list[int], window: int, keeps_all: bool, kind: type = torch.optim.AdamW
) -> tuple[dict, torch.optim.Optimizer, int]:
    """As PicardRounds does it: a round's slots, then the accepted steps by the real optimizer."""
    parameters, optimizer = start(kind)
    update = OptimizerUpdate(optimizer, [[name] for name in parameters])
    step, computed = 0, 0
    for stride in accepted:
        weights, served = LocalWeights(optimizer, update, parameters, keeps_all), []
        before = {name: p.data.clone() for name, p in parameters.items()}
        for ahead in range(window):
            found = {name: gradient(value, step + ahead) for name, value in weights.values().items()}
            served.append(weights.learn(step + ahead, found, True))
            computed += 1
        weights.end_round()
        assert keeps_all or all(torch.equal(p.data, before[name]) for name, p in parameters.items())
        for gradients in served[:stride]:
            for name, parameter in parameters.items():
                parameter.grad = gradients.get(name)
            optimizer.step()
        step += stride
    return parameters, optimizer, computed


@pytest.mark.parametrize("kind", [torch.optim.AdamW, Adan])
@pytest.mark.parametrize("accepted", [[1] * 7, [3, 1, 3], [2, 2, 3]])
def test_one_process_has_learned_what_the_run_step_by_step_has(accepted, kind):
    parameters, optimizer, _ = rounds(accepted, 3, False, kind)
    expected = sequential(7, kind)
    assert all(torch.equal(p.data, expected[name]) for name, p in parameters.items())
    assert {float(state["step"]) for state in optimizer.state.values()} == {7.0}


def test_several_processes_keep_what_every_slot_has_taught():
    parameters, optimizer, computed = rounds([1, 2, 1], window=3, keeps_all=True)
    assert computed == 9 and {float(state["step"]) for state in optimizer.state.values()} == {9.0}
    expected = sequential(4)
    assert not any(torch.equal(p.data, expected[name]) for name, p in parameters.items())


@pytest.mark.parametrize("keeps_all", [True, False])
def test_a_slot_that_is_not_finite_teaches_nothing(keeps_all):
    parameters, optimizer = start()
    update = OptimizerUpdate(optimizer, [[name] for name in parameters])
    weights = LocalWeights(optimizer, update, parameters, keeps_all)
    before = {name: value.clone() for name, value in weights.values().items()}
    weights.learn(0, {name: torch.full((3,), float("nan")) for name in parameters}, False)
    assert all(torch.equal(value, before[name]) for name, value in weights.values().items())
    weights.learn(1, {name: torch.ones(3) for name in parameters}, True)
    assert not any(torch.equal(value, before[name]) for name, value in weights.values().items())


def test_no_local_weights_are_nothing_to_do():
    _, optimizer = start()
    weights = LocalWeights(optimizer, OptimizerUpdate(optimizer, [[], []]), {}, True)
    assert weights.values() == {} and weights.learn(0, {}, True) == {}
    weights.end_round()


def test_modules_say_which_weights_learn_from_renders():
    names = local_weight_names(System())
    assert names == {"guidance.teacher.weight", "guidance.teacher.bias"}
    groups = [["scene.weight", "scene.bias"], ["guidance.frozen.weight", "guidance.teacher.weight"]]
    state, local = split_groups(groups, names)
    assert state == [groups[0], ["guidance.frozen.weight"]] and local == [[], ["guidance.teacher.weight"]]


def test_what_it_means_is_said_at_the_start():
    assert "is the run step by step" in local_weights_note([["a"], ["b"]], 1)
    several = local_weights_note([["a"], ["b"]], 4)
    assert "2 weights" in several and "no fixed point" in several and "rank 0" in several


def test_the_earlier_name_of_the_key_goes_on_working():
    assert picard_config({}).learning_teacher == "local"
    assert picard_config({"beside": "state"}).learning_teacher == "state"
    with pytest.raises(ValueError, match="system.picard.learning_teacher: expected one of local, state, got 'x'"):
        picard_config({"beside": "x"})
