"""The one check of `system.loss`: every key is read by the system or weighs a loss of a guidance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import threestudio
from threestudio.utils.errors import UserError, nearest_names, with_suggestion


@dataclass(frozen=True)
class LossWeights:
    """Keys of `system.loss` that a system itself reads."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.required, *self.optional)

    def with_(self, required: tuple[str, ...] = (), optional: tuple[str, ...] = ()) -> "LossWeights":
        """These and others."""
        return LossWeights((*self.required, *required), (*self.optional, *optional))


@dataclass(frozen=True)
class GuidanceLosses:
    """What a guidance of a system returns at each step."""

    guidance_type: str
    names: tuple[str, ...] | None  # X of each loss_X, the method's own first; None: its class does not say
    prefix: str = ""  # the weight of loss_X is lambda_<prefix>X

    @property
    def distillation_weight(self) -> str:
        """The weight of the method's own loss, whichever it is: a config that has it takes any method by one key."""
        return f"lambda_{self.prefix}distillation"

    @property
    def weights(self) -> tuple[str, ...]:
        return tuple(f"lambda_{self.prefix}{name}" for name in self.names or ())


def returned_losses(guidance_class: Any, guidance_config: Any = None) -> tuple[str, ...] | None:
    """X of each `loss_X` that every step returns with this config, the method's own first; without one, with any.

    A guidance says so by a classmethod of this name; those of other authors need not have it: None.
    """
    says = getattr(guidance_class, "returned_losses", None)
    return None if says is None else tuple(says(guidance_config))


def losses_of_all_guidances() -> set[str]:
    """X of each `loss_X` of the registered guidances. A config may weigh losses of several, to switch by one key."""
    return {name for registered in threestudio.__modules__.values() for name in returned_losses(registered) or ()}


def with_distillation_weight(loss: Any, guidance: GuidanceLosses) -> dict[str, Any]:
    """`loss` with `lambda_distillation` under the name of the method's own loss, unless that has a weight already.

    Raises UserError where there is such a weight, and the guidance does not say which loss is its own.
    """
    resolved, key = dict(loss), guidance.distillation_weight
    if key not in resolved:
        return resolved
    if not guidance.weights:
        raise UserError(
            f"system.loss.{key}: {guidance.guidance_type or 'no guidance'} does not say which loss is its own; "
            "give lambda_X for each loss_X that it returns"
        )
    weight = resolved.pop(key)
    return {guidance.weights[0]: weight, **resolved}


def checked_loss(loss: Any, own: LossWeights | None, guidances: Sequence[GuidanceLosses]) -> dict[str, Any]:
    """`loss` with `lambda_distillation` resolved, for each guidance.

    A weight of a loss that only other guidances return is let through; a line says that nobody reads it, unless the
    config is for any method or the weight is 0. Nothing else is checked where the system does not say what it reads
    (`own`), nor weights of guidances where one does not say what it returns: a step will show. Raises UserError where a
    weight is missing, or a key is one that nobody has.
    """
    for key in own.required if own is not None else ():
        if key not in loss:
            raise UserError(with_suggestion(f"system.loss.{key}: a value is required", key, loss))
    resolved = dict(loss)
    for guidance in guidances or [GuidanceLosses("", None)]:
        resolved = with_distillation_weight(resolved, guidance)
    if own is None or not guidances or any(guidance.names is None for guidance in guidances):
        return resolved
    returned = [key for guidance in guidances for key in guidance.weights]
    read = {*own.keys, *returned}
    _check_known(resolved, read, guidances)
    for guidance in guidances:
        for key in guidance.weights:
            if key not in resolved:
                message = f"system.loss.{key}: a weight of the loss of {guidance.guidance_type} is required"
                raise UserError(with_suggestion(message, key, resolved))
    unread = [key for key, value in resolved.items() if key not in read and value != 0]
    if unread and not any(guidance.distillation_weight in loss for guidance in guidances):
        threestudio.info(f"system.loss: not read are {', '.join(unread)}; the guidance has {', '.join(returned)}")
    return resolved


def _check_known(loss: Any, read: set[str], guidances: Sequence[GuidanceLosses]) -> None:
    """Raises UserError for a key that nobody reads, and that weighs no loss of any guidance."""
    others = {f"lambda_{guidance.prefix}{name}" for guidance in guidances for name in losses_of_all_guidances()}
    known = sorted({*read, *others, *(guidance.distillation_weight for guidance in guidances)})
    for key in loss:
        if key not in known:
            bare = {name.removeprefix("lambda_"): name for name in known}
            near = [bare[name] for name in nearest_names(str(key).removeprefix("lambda_"), bare)]
            hint = f"nearest: {', '.join(near)}" if near else f"known: {', '.join(known)}"
            raise UserError(f"system.loss.{key}: no loss has this weight; {hint}")
