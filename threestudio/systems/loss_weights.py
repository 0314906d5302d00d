"""The one check of `system.loss`: every key is read by the system or weighs a loss of its guidance."""

from typing import Any, Iterable, Optional

from threestudio.utils.errors import UserError, nearest_names, with_suggestion

# X of each `loss_X` of threestudio's guidances, and of ScaleDreamer's. A config may weigh losses of several guidances,
# to switch by one key.
USUAL_GUIDANCE_LOSSES = ("sds", "sds_img", "vsd", "vsd_img", "lora", "asd", "csd", "sdi", "sd", "sd_img", "train_phi")


def guidance_loss_names(guidance_class: Any) -> Optional[tuple[str, ...]]:
    """X of each `loss_X` that a guidance of this class may return; None if the class does not say.

    A guidance says so by an attribute `loss_names` of its class; those of other authors need not have it.
    """
    return getattr(guidance_class, "loss_names", None)


def check_loss_keys(loss: Any, own: Iterable[str], guidance_losses: Iterable[str]) -> None:
    """Raises UserError for a key of `system.loss` that neither the system (`own`) nor a guidance has."""
    weights = [f"lambda_{name}" for name in (*guidance_losses, *USUAL_GUIDANCE_LOSSES)]
    known = sorted({*own, *weights})
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
        message = f"system.loss.{keys[0]}: a weight of the loss of {guidance_type} is required"
        raise UserError(with_suggestion(message, keys[0], [key for key in loss if key not in keys]))


def check_weights_of_each_step(loss: Any, guidance_class: Any, guidance_type: str) -> None:
    """Raises UserError where a loss that the guidance returns at every step has no weight.

    A guidance names such losses by an attribute `losses_of_each_step` of its class; it need not have it.
    """
    for name in getattr(guidance_class, "losses_of_each_step", ()):
        key = f"lambda_{name}"
        if key not in loss:
            message = f"system.loss.{key}: a weight of the loss of {guidance_type} is required"
            raise UserError(with_suggestion(message, key, loss))
