"""DreamPropeller's window against its algorithm written anew in numpy, as its launcher runs it.

There a window of P gradients has P + 1 slots. All gradients are those of the slots' own parameters; a rollout from the
first slot applies them in turn, and each of its P states is compared with the slot at that step. The first state whose
error is above the threshold, or the last, is the new first slot; from it on slots take the rollout's states; slots that
come in are copies of its last one. The threshold is a moving average: of the errors' mean, or of errors[P // 2], which
it calls the median (arXiv 2311.17082, section 4; the release's launch_speedup.py). Moments are copied here, not shared.
"""

import itertools

import numpy as np
import pytest
import torch
from turboprop.picard.engine.state import Evaluation, State
from turboprop.picard.engine.updates import OptimizerUpdate
from turboprop.picard.settings import build_window, picard_config

SIZE, STEPS, RATE, BETAS, EPS = 12, 120, 0.01, (0.9, 0.99), 1e-15


def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A matrix, a target for each step, and the start."""
    draw = np.random.default_rng(3)
    matrix = np.eye(SIZE) + 0.3 * draw.normal(size=(SIZE, SIZE)) / SIZE**0.5
    return matrix, 1.0 + 0.4 * draw.normal(size=(STEPS, SIZE)), draw.normal(size=SIZE)


MATRIX, TARGETS, START = problem()


def gradient(parameters: np.ndarray, step: int) -> np.ndarray:
    return MATRIX.T @ np.tanh(MATRIX @ parameters - TARGETS[step])


class Adam:
    """Kingma and Ba 2015, algorithm 1."""

    def __init__(self):
        self.first, self.second, self.count = np.zeros(SIZE), np.zeros(SIZE), 0

    def copy(self) -> "Adam":
        other = Adam()
        other.first, other.second, other.count = self.first.copy(), self.second.copy(), self.count
        return other

    def step(self, parameters: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        self.count += 1
        self.first = BETAS[0] * self.first + (1 - BETAS[0]) * gradient
        self.second = BETAS[1] * self.second + (1 - BETAS[1]) * gradient**2
        first = self.first / (1 - BETAS[0] ** self.count)
        second = self.second / (1 - BETAS[1] ** self.count)
        return parameters - RATE * first / (np.sqrt(second) + EPS)


def published(window: int, threshold: float, decay: float, kind: str) -> tuple[list[int], np.ndarray]:
    """The strides of its loop, and where it ends."""
    slots = {step: START.copy() for step in range(window + 1)}
    optimizer, begin, end, strides = Adam(), 0, window, []
    while begin < STEPS:
        length = end - begin
        gradients = [gradient(slots[begin + i], begin + i) for i in range(length)]
        rolled, rolling, kept, errors, stride = slots[begin].copy(), optimizer.copy(), None, [], 0
        for i in range(length):
            rolled = rolling.step(rolled, gradients[i])
            errors.append(((rolled - slots[begin + i + 1]) ** 2).sum() / SIZE * 1e6)
            if not stride and (errors[-1] > threshold or i == length - 1):
                stride, kept = i + 1, rolling.copy()
            if stride:
                slots[begin + i + 1] = rolled.copy()
        seen = errors[length // 2] if kind == "median" else sum(errors) / length
        threshold = decay * threshold + (1 - decay) * seen
        strides.append(stride)
        begin, optimizer, last = begin + stride, kept, end
        end = min(begin + length, STEPS)
        for step in range(last + 1, end + 1):
            slots[step] = rolled.copy()
    return strides, slots[STEPS]


def ours(block: dict) -> tuple[list[int], np.ndarray]:
    """The strides of a window with a `speedup:` block, and where it ends."""
    parameter = torch.nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = torch.optim.Adam([parameter], lr=RATE, betas=BETAS, eps=EPS, foreach=False)
    update = OptimizerUpdate(optimizer, [["only"]])

    def evaluate(points):
        found = [gradient(point.parameters["only"].numpy(), point.step) for point in points]
        return [Evaluation.of({"only": torch.from_numpy(g)}) for g in found]

    engine = build_window(picard_config({"speedup": block}), evaluate, update)
    state, strides = State(0, {"only": torch.from_numpy(START.copy())}, {}), []
    while state.step < STEPS:
        result = engine.round(state, STEPS - state.step)
        for evaluation in result.accepted:
            update(state, evaluation.gradients)
        strides.append(result.stride)
    return strides, state.parameters["only"].numpy()


SETTINGS = list(itertools.product((2, 3, 7, 16), (1e-6, 5.0, 1e4), (0.9, 0.5), ("median", "mean")))


@pytest.mark.parametrize("window, threshold, decay, kind", SETTINGS)
def test_strides_are_those_of_its_loop(window, threshold, decay, kind):
    expected, end = published(window, threshold, decay, kind)
    strides, state = ours({"P": window, "threshold": threshold, "ema_decay": decay, "adaptivity_type": kind})
    assert strides == expected
    np.testing.assert_allclose(state, end, rtol=1e-9)
    assert sum(strides) == STEPS


def test_the_settings_tell_rules_apart():
    """Strides of the two kinds, and of other starts, differ: equality above is not for want of choice."""
    strides = {setting: tuple(published(*setting)[0]) for setting in SETTINGS}
    for window, threshold in itertools.product((7, 16), (1e-6, 5.0)):
        assert strides[window, threshold, 0.9, "median"] != strides[window, threshold, 0.9, "mean"]
    assert len(set(strides.values())) > 20


def test_a_window_of_one_is_training_step_by_step():
    strides, state = ours({"P": 1, "threshold": 5.0})
    parameters, optimizer = START.copy(), Adam()
    for step in range(STEPS):
        parameters = optimizer.step(parameters, gradient(parameters, step))
    assert strides == [1] * STEPS
    np.testing.assert_allclose(state, parameters, rtol=1e-9)
