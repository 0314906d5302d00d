"""Checkpoints that a crash at any moment leaves whole: the old one, or the new one."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint

from threestudio.utils.stopping import NotesStopSignals, StoppedByHand


class _TellingFile:
    """A file that keeps the first error of the system, which torch.save buries under its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def write_atomically(path: str, write: Callable[[Any], None]) -> None:
    """Calls `write(file)` on a file beside `path`, and puts it in its place when it is on disk.

    Raises OSError with `path` where the system could not write.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    telling: _TellingFile | None = None
    try:
        with open(temporary, "wb") as file:
            telling = _TellingFile(file)
            write(telling)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except (OSError, RuntimeError) as error:
        cause = telling.error if telling is not None and telling.error is not None else error
        if not isinstance(cause, OSError) or cause.errno is None:
            raise
        raise OSError(cause.errno, cause.strerror, str(target)) from None
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the new name itself outlives a power cut
    finally:
        os.close(folder)


class AtomicCheckpointIO(TorchCheckpointIO):
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        for stale in Path(path).parent.glob(f".{Path(path).name}.*.part"):
            stale.unlink(missing_ok=True)  # of a run that was killed while it wrote
        write_atomically(path, lambda file: torch.save(checkpoint, file))


class CheckpointsToTheEnd(ModelCheckpoint):
    """ModelCheckpoint whose last.ckpt holds the run's last step, whatever its interval, also of one that is stopped.

    `stop` says whether the run was told to stop; the step that it has reached is then saved, whatever the config says
    about checkpoints, and StoppedByHand is raised.
    """

    def __init__(self, stop: NotesStopSignals | None = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._stop = stop
        self._step_before = 0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        is_last = trainer.global_step == trainer.max_steps
        if is_last and self._last_global_step_saved != trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        # Between the batches of one step, a checkpoint would lose the gradients of those before.
        if trainer.global_step != self._step_before or trainer.accumulate_grad_batches == 1:
            self._end_if_asked(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._end_if_asked(trainer)

    def _end_if_asked(self, trainer: pl.Trainer) -> None:
        if self._stop is None or not self._stop.asked():
            return
        if not self.save_last:
            trainer.save_checkpoint(os.path.join(str(self.dirpath), "last.ckpt"))
        elif self._last_global_step_saved != trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        raise StoppedByHand
