"""What the next steps of a Lightning run will be given: batches, and settings of the optimizer."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any, Dict, List, Optional

from threestudio.utils.base import update_if_possible
from threestudio.utils.keyed_random import seed_step

from .contract import SetsLearningRates
from .engine.updates import GroupSettings, bare_replica, group_settings


class ComingBatches:
    """The batches of coming steps, drawn ahead of the trainer and kept until their step is over.

    A batch is drawn under its step's key, as the bundled host draws it: the trainer gets the same one later.
    """

    def __init__(self, system: Any) -> None:
        self._system = system
        self._epoch: Optional[int] = None
        self._batches: Dict[int, Any] = {}

    def get(self, index: int, step: int) -> Any:
        """The batch of loader index `index` and step number `step`: a copy, as steps write into their batch."""
        if self._epoch != self._system.trainer.current_epoch:
            self._begin_epoch()
        while self._next <= index:
            drawn = self._next
            self._batches[drawn] = self._draw(step - index + drawn)
        return copy.copy(self._batches[index])

    def _begin_epoch(self) -> None:
        trainer, seed = self._system.trainer, self._system.run_seed
        self._epoch, self._batches, self._next = trainer.current_epoch, {}, finished_batches(trainer)
        self._loader = plain_train_loader(trainer)
        self._position: Optional[int] = None  # in an epoch of finite length
        epoch = 0
        if math.isfinite(trainer.num_training_batches):
            epoch, self._position = divmod(self._next, int(trainer.num_training_batches))
        seed_step(seed, self._next if self._position is None else epoch, stream="data order")
        self._iterator = iter(self._loader)
        for _ in range(self._position or 0):
            next(self._iterator)

    def _draw(self, step: int) -> Any:
        trainer = self._system.trainer
        update_if_possible(getattr(self._loader, "dataset", None), trainer.current_epoch, step)
        if self._position != 0:  # whose order is drawn with the first batch
            seed_step(self._system.run_seed, self._next, stream="data")
        self._position = None if self._position is None else self._position + 1
        self._next += 1
        batch = trainer.precision_plugin.convert_input(next(self._iterator))
        return trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    def forget_before(self, index: int) -> None:
        self._batches = {i: batch for i, batch in self._batches.items() if i >= index}


def plain_train_loader(trainer: Any) -> Any:
    """A train loader of its own, the same for all processes: without what a host or a trainer has made of it."""
    datamodule = trainer.datamodule
    return trainer.train_dataloader if datamodule is None else type(datamodule).train_dataloader(datamodule)


def finished_batches(trainer: Any) -> int:
    """How many batches the whole run has finished: random draws are keyed by it."""
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
