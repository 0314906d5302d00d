"""What an op can be computed by: plain torch, Warp's kernels, and a CUDA library where a user has one for it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import check_choice


def is_installed(package: str) -> bool:
    """Whether the package can be found; it is not imported."""
    return importlib.util.find_spec(package) is not None


@dataclass(frozen=True)
class Backends:
    """The backends of one op. All but torch compute in float32 alone."""

    op: str  # what errors call it
    library: str = ""  # package of CUDA kernels that compute the op too
    has_library: Callable[[], bool] = lambda: True  # whether that package, once found, is one that can be used

    @property
    def names(self) -> tuple[str, ...]:
        """What the argument ``backend`` may be."""
        return ("auto", "torch", "warp", *([self.library] if self.library else []))

    def available(self, device: torch.device) -> list[str]:
        """Backends that can run float32 on this device, fastest first."""
        names = []
        if self.library and device.type == "cuda" and is_installed(self.library) and self.has_library():
            names.append(self.library)
        if device.type in ("cpu", "cuda") and is_installed("warp"):
            names.append("warp")
        return names + ["torch"]

    def choose(self, backend: str, *inputs: Tensor, agrees: Callable[[], bool] = lambda: True) -> str:
        """The backend for tensors like these: for ``auto`` the fastest, which the library is only where it agrees.
        Raises UserError for a name that is none, or one that cannot run here on tensors of this type."""
        check_choice(f"{self.op}: backend", backend, self.names)
        device, types = inputs[0].device, {x.dtype for x in inputs}
        available = self.available(device) if types == {torch.float32} else ["torch"]
        if backend == "auto":
            return available[1] if available[0] == self.library and not agrees() else available[0]
        if backend not in available:
            kind = f"{device.type}, {', '.join(sorted(str(x) for x in types))}"
            raise UserError(
                f"{self.op}: backend {backend!r} is not available for {kind} "
                f"(available: {', '.join(available)}; all but torch take float32)"
            )
        return backend
