"""What the next steps of a Lightning run will be given: batches, and settings of the optimizer."""

from __future__ import annotations

import copy
import warnings
from typing import Any, Dict, Iterator, List, Optional

from threestudio.utils.base import update_if_possible
from threestudio.utils.misc import get_rank

from .contract import SetsLearningRates
from .keys import seed_step
from .updates import GroupSettings, bare_replica, group_settings


class ComingBatches:
    """The train loader's batches, drawn ahead of the trainer and kept until their step is over.

    A batch is drawn under its step's key, as the bundled host draws it: the trainer gets the same one later.
    """

    def __init__(self, system: Any) -> None:
        self._system = system
        self._epoch: Optional[int] = None
        self._batches: Dict[int, Any] = {}
        self._iterator: Iterator[Any] = iter(())
        self._next = 0

    def get(self, index: int, step: int) -> Any:
        """The batch of loader index `index` and step number `step`: a copy, as steps write into their batch."""
        trainer = self._system.trainer
        if self._epoch != trainer.current_epoch:
            self._epoch, self._batches = trainer.current_epoch, {}
            self._iterator = iter(trainer.train_dataloader)
            self._next = finished_batches(trainer)
        while self._next <= index:
            self._batches[self._next] = self._draw(self._next, step - index + self._next)
            self._next += 1
        return copy.copy(self._batches[index])

    def _draw(self, index: int, step: int) -> Any:
        trainer = self._system.trainer
        update_if_possible(getattr(trainer.train_dataloader, "dataset", None), trainer.current_epoch, step)
        seed_step(self._system.run_seed, index, get_rank(), "data")
        batch = trainer.precision_plugin.convert_input(next(self._iterator))
        return trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    def forget_before(self, index: int) -> None:
        self._batches = {i: batch for i, batch in self._batches.items() if i >= index}


def finished_batches(trainer: Any) -> int:
    """Of the whole run: random draws are keyed by it."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed


def batches_left(trainer: Any, batch_idx: int) -> float:
    """In this epoch and run, the one at `batch_idx` included."""
    left = float(trainer.num_training_batches) - batch_idx
    if trainer.max_steps is not None and trainer.max_steps >= 0:
        left = min(left, trainer.max_steps - trainer.global_step)
    return left


def coming_settings(system: Any, batch_idx: int, count: int) -> List[GroupSettings]:
    """Settings of the optimizer's groups at the next `count` updates, by the schedules that the trainer will step."""
    trainer = system.trainer
    optimizer = trainer.optimizers[0]
    replica = bare_replica(optimizer)
    configs = [c for c in trainer.lr_scheduler_configs if c.interval == "step" and not c.reduce_on_plateau]
    memo = {id(optimizer): replica}
    schedulers = [copy.deepcopy(c.scheduler, memo) for c in configs]
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the replica's scheduler moves on without the replica
        for ahead in range(count):
            if isinstance(system, SetsLearningRates):
                system.set_learning_rates(replica, trainer.current_epoch, trainer.global_step + ahead)
            rows.append(group_settings(replica))
            for config, scheduler in zip(configs, schedulers):
                if (batch_idx + ahead + 1) % config.frequency == 0:
                    scheduler.step()
    return rows
