"""Random numbers keyed by (seed, step, rank, stream).

A training step draws from the global generators like any torch code, but the host reseeds them
at the step's start from the step's own key. So a step's draws do not depend on what ran before it,
and a resumed or replayed step draws the same numbers as the first time.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def step_key(seed: int, step: int, rank: int = 0, stream: str = "step") -> int:
    """A 64-bit key, different for every (seed, step, rank, stream)."""
    text = f"{int(seed)}/{int(step)}/{int(rank)}/{stream}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def seed_step(seed: int, step: int, rank: int = 0, stream: str = "step") -> None:
    """Reseeds the global generators of torch (all devices), numpy and python for one step."""
    key = step_key(seed, step, rank, stream)
    torch.manual_seed(key)
    np.random.seed(key % 2**32)
    random.seed(key)


def generator_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """A generator on `device` that `generator`'s next draw seeds; itself where it is there already.

    Large draws belong on the device that they are used on: a CPU takes longer for them than a GPU for the whole step.
    """
    if generator.device.type == device.type:
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Puts the global generators back as they were when the block ends."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)
