"""What a resumed run has of its checkpoint: its optimizer's state, and settings where the config says otherwise.

torch restores an optimizer's settings with its state, so a rate that was changed in the config has no effect.
"""

from typing import Any

import pytorch_lightning as pl
import torch

import threestudio
from threestudio.utils.errors import UserError


class TellsKeptSettings(pl.Callback):
    """Says where a resumed run's optimizer has other settings than the config gives it.

    Raises UserError where its state is of weights in other shapes.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if pl_module.resumed:
            check_state(trainer.optimizers[0])
        if not (pl_module.resumed and pl_module.given_settings and trainer.is_global_zero):
            return
        kept = kept_settings(pl_module.given_settings, settings_of(trainer.optimizers[0]))
        if kept:
            threestudio.warn(f"resume: the optimizer keeps the checkpoint's settings: {'; '.join(kept)}")


def check_state(optimizer: torch.optim.Optimizer) -> None:
    """Raises UserError where a weight has a state of as many numbers in another shape, as tiny-cuda-nn's rows are."""
    for parameter, state in optimizer.state.items():
        for value in state.values():
            if not isinstance(value, torch.Tensor) or value.ndim == 0 or value.numel() != parameter.numel():
                continue
            if value.shape != parameter.shape:
                raise UserError(
                    f"resume: the optimizer's state is of weights of shape {list(value.shape)}, here they have "
                    f"{list(parameter.shape)}; another program's weights are taken by system.weights"
                )


def settings_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Each group's settings, without its weights; the rate that a schedule moves is the one that it begins with."""
    found = []
    for group in optimizer.param_groups:
        settings = {key: value for key, value in group.items() if key != "params"}
        if "initial_lr" in settings:
            settings["lr"] = settings.pop("initial_lr")
        found.append(settings)
    return found


def kept_settings(given: list[dict[str, Any]], restored: list[dict[str, Any]]) -> list[str]:
    """Where settings of the checkpoint stand in place of the config's: a few words for each."""
    lines = []
    for number, (new, old) in enumerate(zip(given, restored)):
        name = f"{new['name']}: " if "name" in new else f"group {number}: " if len(given) > 1 else ""
        for key in new.keys() & old.keys() - {"name"}:
            if _plain(new[key]) != _plain(old[key]):
                lines.append(f"{name}{key} stays {_plain(old[key])}, the config has {_plain(new[key])}")
    return sorted(lines)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value.item() if isinstance(value, torch.Tensor) else value
