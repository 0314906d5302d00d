"""Checkpoints that a crash at any moment leaves whole: the old one, or the new one."""

import os
from pathlib import Path
from typing import Any, Callable, Optional

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint


def write_atomically(path: str, write: Callable[[Any], None]) -> None:
    """Calls `write(file)` on a file beside `path`, and puts it in its place when it is on disk."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the new name itself outlives a power cut
    finally:
        os.close(folder)


class AtomicCheckpointIO(TorchCheckpointIO):
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Optional[Any] = None
    ) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        for stale in Path(path).parent.glob(f".{Path(path).name}.*.part"):
            stale.unlink(missing_ok=True)  # of a run that was killed while it wrote
        write_atomically(path, lambda file: torch.save(checkpoint, file))


class CheckpointsToTheEnd(ModelCheckpoint):
    """ModelCheckpoint whose last.ckpt holds the run's last step, whatever its interval."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        is_last = trainer.global_step == trainer.max_steps
        if is_last and self._last_global_step_saved != trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
