"""How the watch over ranks sits in a trainer: begun with training, ended with it or by an error."""

from __future__ import annotations

from typing import Any, Optional

import pytorch_lightning as pl

from .communication import Communication
from .heartbeats import RankWatch


class WatchesRanks(pl.Callback):
    """Ends the run by name where a rank of several hangs."""

    def __init__(self, dead_after: float) -> None:  # seconds
        self._dead_after = dead_after
        self._watch: Optional[RankWatch] = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.world_size > 1:
            self._watch = RankWatch(self._dead_after)
            self._watch.step = trainer.global_step
            self._watch.start()
            check_same_start(trainer.global_step)

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if self._watch is not None:
            self._watch.step = trainer.global_step

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._stop(finished=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._stop(finished=True)

    def _stop(self, finished: bool) -> None:
        if self._watch is not None:
            self._watch.stop(finished)
            self._watch = None


def check_same_start(step: int) -> None:
    """Raises RuntimeError where not all ranks go on from the same step."""
    found = Communication().gather_objects(step)
    for rank, value in enumerate(found):
        if value != found[0]:
            raise RuntimeError(
                f"picard: rank 0 begins at step {found[0]} and rank {rank} at step {value}; "
                "all must be able to read the same checkpoint"
            )
