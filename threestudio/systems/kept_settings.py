"""What a resumed run keeps of its checkpoint, where the config says otherwise: the settings of its optimizer.

torch restores an optimizer's settings with its state, so a rate that was changed in the config has no effect.
"""

from typing import Any

import pytorch_lightning as pl
import torch

import threestudio


class TellsKeptSettings(pl.Callback):
    """Says where a resumed run's optimizer has other settings than the config gives it."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not (pl_module.resumed and pl_module.given_settings and trainer.is_global_zero):
            return
        kept = kept_settings(pl_module.given_settings, settings_of(trainer.optimizers[0]))
        if kept:
            threestudio.warn(f"resume: the optimizer keeps the checkpoint's settings: {'; '.join(kept)}")


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
