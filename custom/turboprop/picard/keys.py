"""Random draws keyed by (seed, step, stream), as the bundled host keys those of a training step.

The numbers are the host's, so that a step draws the same whether the host runs it or a window does. All processes of a
run by Picard iterations are one run: they draw what the first of several would.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor


def seed_step(seed: int, step: int, stream: str) -> None:
    """Reseeds the global generators of torch (all devices), numpy and python."""
    text = f"{int(seed)}/{int(step)}/0/{stream}".encode()
    key = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    torch.manual_seed(key)
    np.random.seed(key % 2**32)
    random.seed(key)


class RandomState(NamedTuple):
    """Of all global generators; of CUDA's the current device's, so that another process can take it over."""

    python: Any
    numpy: Any
    torch: Tensor
    cuda: Optional[Tensor]

    @staticmethod
    def now() -> "RandomState":
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return RandomState(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)

    def restore(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)
