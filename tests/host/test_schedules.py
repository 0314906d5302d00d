"""C: values that change with the step."""

import math
from dataclasses import dataclass

import pytest

from threestudio.utils.config import parse_structured
from threestudio.utils.misc import C


@pytest.mark.parametrize("step, expected", [(0, 1.0), (10, 1.0), (15, 2.0), (20, 3.0), (99, 3.0)])
def test_linear_between_and_held_outside(step, expected):
    assert C([10, 1.0, 3.0, 20], 0, step) == pytest.approx(expected)


def test_numbers_are_themselves():
    assert C(3, 0, 100) == 3 and C(0.5, 7, 100) == 0.5


def test_three_numbers_start_at_zero():
    assert C([1.0, 3.0, 10], 0, 5) == C([0, 1.0, 3.0, 10], 0, 5) == pytest.approx(2.0)


def test_a_float_end_counts_epochs():
    assert C([0, 1.0, 3.0, 10.0], 5, 1000) == pytest.approx(2.0)
    assert C([0, 1.0, 3.0, 10], 1000, 5) == pytest.approx(2.0)


def test_exponential():
    assert C([0, 1.0, 0.01, 10], 0, 5, interpolation="exp") == pytest.approx(0.1)
    assert math.isclose(C([0, 1.0, 0.01, 10], 0, 10, interpolation="exp"), 0.01)


@pytest.mark.parametrize("step, expected", [(0, 0), (5, 5), (10, 10), (15, 5), (20, 0), (30, 20), (50, 20)])
def test_pieces(step, expected):
    assert C([0, 0.0, 10.0, 10, 0.0, 20, 20.0, 30], 0, step) == pytest.approx(expected)


@pytest.mark.parametrize("step, expected", [(0, 0.0), (99, 0.0), (100, 5.0), (200, 5.0)])
def test_a_piece_of_no_length_is_a_jump_at_its_step(step, expected):
    assert C([100, 0.0, 5.0, 100], 0, step) == expected


@pytest.mark.parametrize("step, expected", [(0, 1.0), (99, 1.0), (100, 0.5), (150, 0.3), (200, 0.1)])
def test_a_jump_before_other_pieces(step, expected):
    assert C([100, 1.0, 0.5, 100, 0.1, 200], 0, step) == pytest.approx(expected)


@pytest.mark.parametrize("bad", ["1", None, [1, 2], [1, 2, 3, 4, 5], {"a": 1}, True])
def test_what_is_no_schedule(bad):
    with pytest.raises(TypeError):
        C(bad, 0, 0)


def test_an_unknown_interpolation():
    with pytest.raises(ValueError, match="'cubic'; expected 'linear' or 'exp'"):
        C([0, 1.0, 2.0, 3], 0, 1, interpolation="cubic")


def test_schedules_from_configs():
    @dataclass
    class Config:
        weight: float = 0.0

    config = parse_structured(Config, {"weight": [0, 0.0, 1.0, 100]})
    assert C(config.weight, 0, 50) == pytest.approx(0.5)
