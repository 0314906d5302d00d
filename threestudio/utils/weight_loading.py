"""Loading weights into a module: what does not fit is one line."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

import threestudio
from threestudio.utils.errors import UserError


def load_weights_into(module: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Loads what has a name in the module, and warns of what is missing or unknown.

    Raises:
        UserError: a weight has another shape, or none has a name in the module. It names `source`.
    """
    given = len(weights)
    result = loaded(module, weights, source, strict=False)
    unknown = result.unexpected_keys
    if given and len(unknown) == given:
        raise UserError(f"{source}: none of its {given} weights is known here, the first is {unknown[0]}")
    for kind, keys in (("missing", result.missing_keys), ("unknown", unknown)):
        if keys:
            threestudio.warn(f"{source}: {len(keys)} {kind} weights, first {keys[0]}")


def loaded(module: nn.Module, weights: dict[str, Tensor], source: str, strict: bool) -> Any:
    """torch's `load_state_dict`. Raises UserError, with the first misfit of `source`, where it raises RuntimeError."""
    try:
        return module.load_state_dict(weights, strict=strict)
    except RuntimeError as error:
        head, _, misfits = str(error).partition("\n")
        if "loading state_dict" not in head:
            raise
        first, *others = misfits.strip().splitlines()
        more = f" ({len(others)} more misfits)" if others else ""
        raise UserError(f"{source} does not fit this config: {first.strip().rstrip('.')}{more}") from error
