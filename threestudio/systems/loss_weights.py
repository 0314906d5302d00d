"""The one check of `system.loss`: every key is read by the system or weighs a loss of its guidance."""

from typing import Any, Iterable, Optional, Sequence

from threestudio.utils.errors import UserError, nearest_names, with_suggestion

# X of each `loss_X` of threestudio's guidances, and of ScaleDreamer's. A config may weigh losses of several guidances,
# to switch by one key.
USUAL_GUIDANCE_LOSSES = ("sds", "sds_img", "vsd", "vsd_img", "lora", "asd", "csd", "sdi", "sd", "sd_img", "train_phi")
# The weight of the guidance's own loss, whichever it is: a config that has it takes any method by `guidance_type`.
DISTILLATION_WEIGHT = "lambda_distillation"


def guidance_loss_names(guidance_class: Any) -> Optional[tuple[str, ...]]:
    """X of each `loss_X` that a guidance of this class may return; None if the class does not say.

    A guidance says so by an attribute `loss_names` of its class; those of other authors need not have it.
    """
    return getattr(guidance_class, "loss_names", None)


def losses_of_each_step(guidance_class: Any, guidance_config: Any) -> tuple[str, ...]:
    """X of each `loss_X` that every step returns with this config, the method's own first; () if no one says.

    A guidance says so by an attribute of this name of its class, or by a classmethod that takes the config
    `system.guidance`; those of other authors need not have it.
    """
    says = getattr(guidance_class, "losses_of_each_step", ())
    return tuple(says(guidance_config) if callable(says) else says)


def with_distillation_weight(loss: Any, each_step: Sequence[str], guidance_type: str) -> dict[str, Any]:
    """`loss` with `lambda_distillation` under the name of the method's own loss, unless that has a weight already.

    Raises:
        UserError: there is such a weight, and the guidance does not say which loss is its own.
    """
    resolved = dict(loss)
    if DISTILLATION_WEIGHT not in resolved:
        return resolved
    if not each_step:
        raise UserError(
            f"system.loss.{DISTILLATION_WEIGHT}: {guidance_type or 'no guidance'} does not say which loss is its own; "
            "give lambda_X for each loss_X that it returns"
        )
    weight = resolved.pop(DISTILLATION_WEIGHT)
    return {f"lambda_{each_step[0]}": weight, **resolved}


def check_loss_keys(loss: Any, own: Iterable[str], guidance_losses: Iterable[str]) -> None:
    """Raises UserError for a key of `system.loss` that neither the system (`own`) nor a guidance has."""
    weights = [f"lambda_{name}" for name in (*guidance_losses, *USUAL_GUIDANCE_LOSSES)]
    known = sorted({*own, *weights, DISTILLATION_WEIGHT})
    for key in loss:
        if key not in known:
            bare = {name.removeprefix("lambda_"): name for name in known}
            near = [bare[name] for name in nearest_names(str(key).removeprefix("lambda_"), bare)]
            hint = f"nearest: {', '.join(near)}" if near else f"known: {', '.join(known)}"
            raise UserError(f"system.loss.{key}: no loss has this weight; {hint}")


def check_required_keys(loss: Any, required: Iterable[str]) -> None:
    """Raises UserError for a key that is missing."""
    for key in required:
        if key not in loss:
            raise UserError(with_suggestion(f"system.loss.{key}: a value is required", key, loss))


def check_guidance_weights(loss: Any, names: Iterable[str], guidance_type: str) -> None:
    """Raises UserError where no loss that the guidance may return has a weight."""
    keys = [f"lambda_{name}" for name in names]
    if not any(key in loss for key in keys):
        raise _missing(keys[0], guidance_type, [key for key in loss if key not in keys])


def check_weights_of_each_step(loss: Any, names: Iterable[str], guidance_type: str) -> None:
    """Raises UserError where a loss that the guidance returns at every step has no weight."""
    for name in names:
        if f"lambda_{name}" not in loss:
            raise _missing(f"lambda_{name}", guidance_type, loss)


def _missing(key: str, guidance_type: str, given: Iterable[str]) -> UserError:
    message = f"system.loss.{key}: a weight of the loss of {guidance_type} is required"
    return UserError(with_suggestion(message, key, given))
