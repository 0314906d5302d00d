"""What makes a training step a function of the weights, the step and the run's seed alone.

Two callbacks that every system brings along, and the train loader's wrapper. Both callbacks run
before the checkpoint callback, so a checkpoint holds the state after the whole step.
"""

from collections.abc import Iterator
from functools import wraps
from typing import Any

import pytorch_lightning as pl
import torch

import threestudio
from threestudio.utils.base import UpdateableInParts, update_if_possible
from threestudio.utils.keyed_random import seed_step
from threestudio.utils.misc import get_rank


class KeyedLoader:
    """A train loader whose every batch is drawn from its own key.

    Lightning fetches a batch ahead where a loader has no length, so the batch cannot rely on what
    the system has set for its step. This wrapper knows which batch comes next (it starts where a
    resumed run stopped), and for each one first updates the dataset to that step, then seeds.

    A dataset that is UpdateableInParts is told which of a step's batches comes next, of those of accumulated gradients
    and of all processes.
    """

    def __init__(self, loader: Any, trainer: pl.Trainer, seed: int) -> None:
        self.loader = loader
        self.trainer = trainer
        self.seed = seed

    @property
    def dataset(self) -> Any:
        return getattr(self.loader, "dataset", None)

    def __len__(self) -> int:
        return len(self.loader)  # TypeError where there is no length, as of the loader itself

    def _has_length(self) -> bool:
        try:
            len(self.loader)
        except TypeError:
            return False
        return True

    def _update_dataset(self, epoch: int, index: int) -> None:
        accumulated, processes = self.trainer.accumulate_grad_batches, self.trainer.world_size
        step, part = divmod(index, accumulated)
        update_if_possible(self.dataset, epoch, step)
        if isinstance(self.dataset, UpdateableInParts):
            self.dataset.update_part(part * processes + get_rank(), accumulated * processes)

    def __iter__(self) -> Iterator[Any]:
        index = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed
        sized = self._has_length()
        epoch, position = self.trainer.current_epoch, 0
        if sized:  # from the index: a resumed run counts an epoch that has just ended differently
            epoch, position = divmod(index, int(self.trainer.num_training_batches))
        # A loader with a length draws its order with its first batch, by the epoch's own key; what
        # a resumed epoch had already is drawn again for that.
        seed_step(self.seed, epoch if sized else index, get_rank(), "data order")
        batches = iter(self.loader)
        for _ in range(position):
            next(batches)
        while True:
            self._update_dataset(epoch, index)
            if position > 0 or not sized:
                seed_step(self.seed, index, get_rank(), "data")
            try:
                batch = next(batches)
            except StopIteration:
                return
            yield batch
            index, position = index + 1, position + 1


def key_train_loader(datamodule: pl.LightningDataModule, trainer: pl.Trainer, seed: int) -> None:
    """Makes `datamodule.train_dataloader()` give a KeyedLoader, which keeps its `dataset`."""
    make_loader = datamodule.train_dataloader
    if getattr(make_loader, "keyed", False):
        return

    @wraps(make_loader)
    def train_dataloader() -> KeyedLoader:
        return KeyedLoader(make_loader(), trainer, seed)

    train_dataloader.keyed = True
    del train_dataloader.__wrapped__  # Lightning would look through it at the method inside
    datamodule.train_dataloader = train_dataloader


class KeyedSteps(pl.Callback):
    """Seeds each step, and ends it (`do_update_step_end`) before a checkpoint is written."""

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit" and trainer.datamodule is not None:
            key_train_loader(trainer.datamodule, trainer, pl_module.run_seed)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        index = trainer.fit_loop.epoch_loop.batch_progress.total.processed
        seed_step(pl_module.run_seed, index, get_rank(), "step")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        pl_module.end_train_step()

    def _seed_evaluation(self, pl_module: Any, stream: str, batch_idx: int) -> None:
        seed_step(pl_module.run_seed, batch_idx, get_rank(), stream)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._seed_evaluation(pl_module, "validation data", 0)

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._seed_evaluation(pl_module, "test data", 0)

    def on_predict_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._seed_evaluation(pl_module, "predict data", 0)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._seed_evaluation(pl_module, "validation", batch_idx)

    def on_test_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._seed_evaluation(pl_module, "test", batch_idx)

    def on_predict_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._seed_evaluation(pl_module, "predict", batch_idx)


def non_finite_gradients(optimizer: torch.optim.Optimizer) -> list[int]:
    """Positions, among the optimizer's parameters, of those with a NaN or Inf in their gradient."""
    indexed = [
        (index, p.grad)
        for index, p in enumerate(p for group in optimizer.param_groups for p in group["params"])
        if p.grad is not None
    ]
    if not indexed:
        return []
    # The largest absolute value is finite only if all are; one transfer for all parameters.
    dense = [g._values() if g.is_sparse else g for _, g in indexed]
    largest = torch._foreach_norm(dense, ord=float("inf"))
    finite = torch.isfinite(torch.stack([value.to(dense[0].device) for value in largest]))
    if bool(finite.all()):
        return []
    return [index for (index, _), ok in zip(indexed, finite.tolist()) if not ok]


class SkipNonFiniteSteps(pl.Callback):
    """Leaves out the update of a step whose gradient has a NaN or Inf, counts it, and says so.

    The gradients are taken away, so the optimizer touches neither weights nor moments.
    """

    def __init__(self) -> None:
        self.skipped = 0

    def state_dict(self) -> dict:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict) -> None:
        self.skipped = state_dict["skipped"]

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        bad = non_finite_gradients(optimizer)
        if not bad:
            return
        self.skipped += 1
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        names = {id(p): name for name, p in pl_module.named_parameters()}
        shown = [names.get(id(parameters[i]), f"parameter {i}") for i in bad]
        for parameter in parameters:
            parameter.grad = None
        threestudio.warn(
            f"step {trainer.global_step}: update skipped, the gradient is not finite in "
            f"{', '.join(shown[:3])}{f' and {len(shown) - 3} more' if len(shown) > 3 else ''} "
            f"({self.skipped} skipped in all)"
        )

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Logged always, so that a log tells a run without skipped steps from one without the check.
        pl_module.log("train/skipped_steps", float(self.skipped))
