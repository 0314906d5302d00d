"""How the watch over ranks sits in a trainer: begun with training, told of every error, ended with it."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any, Optional

import pytorch_lightning as pl
import torch.distributed as dist

from .communication import Communication
from .ranks import BEAT, NAMING, RankLost, RankWatch


class WatchesRanks(pl.Callback):
    """Ends the run by name where a rank of several is dead."""

    def __init__(self, dead_after: float) -> None:  # seconds
        self._dead_after = dead_after
        self._watch: Optional[RankWatch] = None
        self._told_to_stop: Any = None  # the run's own handler of SIGTERM

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.world_size == 1:
            return
        self._watch = RankWatch(self._dead_after)
        self._watch.step = trainer.global_step
        self._watch.start()
        if dist.is_torchelastic_launched() and threading.current_thread() is threading.main_thread():
            # Lightning's own handler waits in a collective, for a rank that is dead.
            self._told_to_stop = signal.signal(signal.SIGTERM, self._on_sigterm)
        check_same_start(trainer.global_step)

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if self._watch is not None:
            self._watch.step = trainer.global_step

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        if self._watch is None:
            return
        raised = self._watch.explained(exception)
        if raised is not exception:
            raise raised from exception
        self._watch.stop()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def _on_sigterm(self, signum: int, frame: Any) -> None:
        """torchrun ends all processes so when one is dead: here that is told by name. Else somebody stops the run."""
        watch = self._watch
        until = time.monotonic() + NAMING + 2 * BEAT
        while watch is not None and time.monotonic() < until:
            lost = watch.lost(NAMING)
            if lost:
                raise RankLost(watch.sentence(lost))
            time.sleep(BEAT / 5)
        if not callable(self._told_to_stop):
            raise SystemExit(128 + signum)
        self._told_to_stop(signum, frame)


def check_same_start(step: int) -> None:
    """Raises RuntimeError where not all ranks go on from the same step."""
    found = Communication().gather_objects(step)
    for rank, value in enumerate(found):
        if value != found[0]:
            raise RuntimeError(
                f"picard: rank 0 begins at step {found[0]} and rank {rank} at step {value}; "
                "all must be able to read the same checkpoint"
            )
