"""The state of the global random generators, as a value."""

from __future__ import annotations

import random
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor


class RandomState(NamedTuple):
    """The states of all global generators; of CUDA the current device's, so that another process can take it over."""

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
