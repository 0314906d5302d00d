"""Random numbers that depend on their key alone."""

import random

import numpy as np
import torch

from threestudio.utils.keyed_random import preserved_random_state, seed_step, step_key


def draw() -> tuple:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_key_gives_its_draws_again():
    seed_step(1, 2, 0, "step")
    first = draw()
    draw()
    seed_step(1, 2, 0, "step")
    assert draw() == first


def test_every_part_of_the_key_counts():
    keys = [(1, 2, 0, "step"), (2, 2, 0, "step"), (1, 3, 0, "step"), (1, 2, 1, "step"),
            (1, 2, 0, "data"), (12, 0, 0, "step"), (1, 20, 0, "step")]  # fmt: skip
    assert len({step_key(*key) for key in keys}) == len(keys)
    draws = set()
    for key in keys:
        seed_step(*key)
        draws.add(draw())
    assert len(draws) == len(keys)


def test_keys_are_the_same_in_every_process():
    assert step_key(0, 0) == 0xE42F52517F1E110E
    assert 0 <= step_key(10**12, 10**12, 10**6, "x") < 2**64


def test_the_state_is_put_back():
    seed_step(5, 5)
    expected = draw()
    seed_step(5, 5)
    with preserved_random_state():
        seed_step(6, 6)
        draw()
    assert draw() == expected
