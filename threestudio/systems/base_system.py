"""`BaseSystem`: the Lightning module that owns a training step, and its life from step to step."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch

from threestudio.systems.kept_settings import TellsKeptSettings, settings_of
from threestudio.systems.keyed_steps import KeyedLoader, KeyedSteps, SkipNonFiniteSteps
from threestudio.systems.utils import (
    check_optimizer,
    check_scheduler,
    parse_optimizer,
    parse_scheduler,
    with_guidance_groups,
)
from threestudio.utils.base import (
    Updateable,
    already_updated,
    update_end_if_possible,
    update_if_possible,
)
from threestudio.utils.config import parse_structured
from threestudio.utils.errors import errors_begin_with
from threestudio.utils.misc import C, cleanup, load_module_weights
from threestudio.utils.saving import SaverMixin
from threestudio.utils.value_checks import check_schedule
from threestudio.utils.weight_loading import load_weights_into


class BaseSystem(pl.LightningModule, Updateable, SaverMixin):
    @dataclass
    class Config:
        loggers: dict = field(default_factory=dict)  # wandb: {enable, project, name}
        # lambda_X: weight of loss X, a number or schedule; lambda_distillation: that of the guidance's method,
        # whichever it is, unless it has one under its own name
        loss: dict = field(default_factory=dict)
        optimizer: dict = field(default_factory=dict)  # name, args, params
        scheduler: dict | None = None  # name, args, interval
        weights: str | None = None  # checkpoint to start from (weights alone); default none
        weights_ignore_modules: list[str] | None = None  # modules not to take from it
        cleanup_after_validation_step: bool = False  # free cached memory after each
        cleanup_after_test_step: bool = False  # free cached memory after each

    cfg: Config
    # Logged figures that the line of progress shows beside the losses. (Lightning's own way, prog_bar=True, waits for a
    # GPU in every step, whether the line is printed or not.)
    shown_figures: ClassVar[tuple[str, ...]] = ()

    def __init__(self, cfg: Any, resumed: bool = False) -> None:
        super().__init__()
        self.cfg = parse_structured(self.Config, cfg)
        self._check_values()
        self._save_dir: str | None = None
        self._resumed = resumed
        self.given_settings: list[dict[str, Any]] = []  # of the optimizer, as the config has them
        self._evaluated_at: tuple[int, int] | None = None  # (epoch, step) of the checkpoint
        self.run_seed = 0  # every random draw of a step is keyed by it; set by the launcher
        self.dataset: Any = None  # of the stage that runs
        self.create_loggers(self.cfg.loggers)
        self.configure()
        if self.cfg.weights:
            with errors_begin_with("system.weights"):
                self.load_weights(self.cfg.weights, self.cfg.weights_ignore_modules)
        self.post_configure()

    # -------------------------------------------------------------------------- building

    def _check_values(self) -> None:
        """Raises UserError for what could be known to be wrong only when a step is made, before anything is built."""
        for key, value in self.cfg.loss.items():
            if str(key).startswith("lambda_"):
                check_schedule(value, f"system.loss.{key}")
        if self.cfg.optimizer:
            check_optimizer(self.cfg.optimizer)
        if self.cfg.scheduler is not None:
            check_scheduler(self.cfg.scheduler, self.cfg.optimizer)

    def configure(self) -> None:
        """Builds the system from `self.cfg`."""

    def post_configure(self) -> None:
        """Called after `configure` and after weights were loaded."""

    def load_weights(self, weights: str, ignore_modules: list[str] | None = None) -> None:
        state_dict, epoch, global_step = load_module_weights(weights, ignore_modules=ignore_modules, map_location="cpu")
        load_weights_into(self, state_dict, weights)
        self.do_update_step(epoch, global_step, on_load_weights=True)

    def configure_optimizers(self) -> dict:
        optimizer = parse_optimizer(with_guidance_groups(self.cfg.optimizer, self), self)
        found: dict[str, Any] = {"optimizer": optimizer}
        if self.cfg.scheduler is not None:
            found["lr_scheduler"] = parse_scheduler(self.cfg.scheduler, optimizer)
        self.given_settings = settings_of(optimizer)
        return found

    def configure_callbacks(self) -> list[pl.Callback]:
        return [KeyedSteps(), SkipNonFiniteSteps(), TellsKeptSettings()]

    # ----------------------------------------------------------------------------- state

    def set_resume_status(self, current_epoch: int, global_step: int) -> None:
        """For evaluation of a checkpoint: Lightning itself starts at step 0 there."""
        self._evaluated_at = (current_epoch, global_step)

    @property
    def resumed(self) -> bool:
        return self._resumed

    @property
    def true_global_step(self) -> int:
        return self.global_step if self._evaluated_at is None else self._evaluated_at[1]

    @property
    def true_current_epoch(self) -> int:
        return self.current_epoch if self._evaluated_at is None else self._evaluated_at[0]

    def C(self, value: Any) -> float:
        """The value of a schedule now."""
        return C(value, self.true_current_epoch, self.true_global_step)

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """As Lightning's, which sends each plain number to the run's device; here it stays on the CPU, unless processes
        are to exchange it."""
        stays = isinstance(value, (int, float)) and not kwargs.get("sync_dist")
        super().log(name, torch.tensor(float(value)) if stays else value, *args, **kwargs)

    # ------------------------------------------------------------------------- lifecycle

    def preprocess_data(self, batch: Any, stage: str) -> None:
        """Changes the batch in place; `stage` is "train", "validation", "test" or "predict"."""

    def _begin_step(self, loader: Any) -> None:
        epoch, step = self.true_current_epoch, self.true_global_step
        self.dataset = getattr(loader, "dataset", None)
        if not isinstance(loader, KeyedLoader):  # which has updated it before drawing the batch
            update_if_possible(self.dataset, epoch, step)
        with already_updated(self.dataset):
            self.do_update_step(epoch, step)

    def _end_step(self) -> None:
        epoch, step = self.true_current_epoch, self.true_global_step
        update_end_if_possible(self.dataset, epoch, step)
        with already_updated(self.dataset):
            self.do_update_step_end(epoch, step)

    def on_train_batch_start(self, batch: Any, batch_idx: int, unused: int = 0) -> None:
        self.preprocess_data(batch, "train")
        self._begin_step(self.trainer.train_dataloader)

    def end_train_step(self) -> None:
        """Called by KeyedSteps, so that a checkpoint holds what the end of the step changed."""
        self._end_step()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The step has been ended already; see `end_train_step`."""

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.preprocess_data(batch, "validation")
        self._begin_step(_one_loader(self.trainer.val_dataloaders, dataloader_idx))

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._end_step()
        if self.cfg.cleanup_after_validation_step:
            cleanup()

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.preprocess_data(batch, "test")
        self._begin_step(_one_loader(self.trainer.test_dataloaders, dataloader_idx))

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._end_step()
        if self.cfg.cleanup_after_test_step:
            cleanup()

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.preprocess_data(batch, "predict")
        self._begin_step(_one_loader(self.trainer.predict_dataloaders, dataloader_idx))

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._end_step()


def _one_loader(loaders: Any, index: int) -> Any:
    return loaders[index] if isinstance(loaders, (list, tuple)) else loaders
