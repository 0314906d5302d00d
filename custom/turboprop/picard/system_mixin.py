"""`picard`: trains any system by Picard iterations.

    system_type: "dreamfusion-system:picard"

Each step of the trainer is one step of training, as ever, but its gradient comes from a round: when none is left, the
gradients of a window of coming steps are computed at guessed states, and those whose guess proves near enough are handed
to the coming steps one by one. Everything else of a step (update, schedules, changes of the number of Gaussians, logs,
validation, checkpoints) is the system's and the trainer's own, at the true state and the true step.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any, Deque, Dict, List, Optional, Sequence

import threestudio
import torch
from threestudio.utils.misc import get_rank
from torch import Tensor

from ..system_mixin import SystemMixin
from .coming_steps import ComingBatches, batches_left, coming_settings, finished_batches
from .contract import ChangesStructure
from .history import History
from .keys import RandomState, seed_step
from .settings import build_window, picard_config
from .state import Changes, Evaluation, Point, State
from .system_buffers import SystemBuffers
from .updates import GroupSettings, OptimizerUpdate, group_settings


@dataclass
class Recorded:
    """What a slot's training step leaves besides gradients, to be handed to the true step."""

    loss: Tensor
    logs: List[tuple]  # (arguments, keyword arguments) of self.log
    changes: Changes  # of buffers, after the beginning of the step, which is done anew at the true state
    random_state: RandomState  # at the end


class PicardSystem(SystemMixin):
    config_group = "picard"
    run_seed = 0  # of hosts that do not say
    _slot_step: Optional[int] = None  # the step that a slot is computing
    _slot_logs: Optional[List[tuple]] = None
    _serving: Optional[Evaluation] = None

    def configure(self) -> None:
        self.picard = picard_config(self.cfg.picard)
        self._accepted: Deque[Evaluation] = deque()
        self._history = History()
        self._saved_window: Optional[Dict[str, Any]] = None
        super().configure()

    # ----------------------------------------------------------------------------- lifecycle

    def on_train_start(self) -> None:
        super().on_train_start()
        self._check_trainer()
        optimizer = self.trainer.optimizers[0]
        update = OptimizerUpdate(optimizer, self._group_names(), lambda step: self._settings[step])
        self._window = build_window(self.picard, self._evaluate_all, update)
        if self._saved_window is not None:
            self._window.load_state_dict(self._saved_window)
        self._batches = ComingBatches(self)
        self._settings: Dict[int, GroupSettings] = {}
        self._shown_parameters: List[int] = []
        self._restart = True

    def _check_trainer(self) -> None:
        trainer = self.trainer
        if not self.automatic_optimization or len(trainer.optimizers) != 1:
            raise ValueError("picard: expected a system with one optimizer and automatic optimization")
        if trainer.accumulate_grad_batches != 1:
            raise ValueError(f"trainer.accumulate_grad_batches: picard takes 1, got {trainer.accumulate_grad_batches}")
        if trainer.gradient_clip_val:
            raise ValueError("trainer.gradient_clip_val: picard takes none")
        if str(trainer.precision).startswith("16"):
            raise ValueError(f"trainer.precision: picard takes 32 or bf16-mixed, got {trainer.precision}")
        if trainer.world_size > 1:
            raise ValueError("picard: expected one process, use --gpu 0")

    def on_fit_end(self) -> None:
        super().on_fit_end()
        if self._history.rows:
            threestudio.info(self._history.summary_line())
            if self.picard.report and self._save_dir is not None:
                self._history.save(self.get_save_path("picard.csv"))

    def on_save_checkpoint(self, checkpoint: Dict[str, Any]) -> None:
        """A checkpoint ends the window: a resumed run goes on from the same state, and no guesses either."""
        super().on_save_checkpoint(checkpoint)
        if self._history.rows:
            checkpoint["picard"] = {"window": self._window.state_dict(), "history": self._history.rows_as_lists()}
            self._restart = True

    def on_load_checkpoint(self, checkpoint: Dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get("picard")
        if saved is not None:
            self._saved_window = saved["window"]
            self._history = History.of(saved["history"])

    @property
    def global_step(self) -> int:
        return super().global_step if self._slot_step is None else self._slot_step

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        if self._slot_logs is None:
            super().log(name, value, *args, **kwargs)
        else:
            self._slot_logs.append(((name, value.detach() if isinstance(value, Tensor) else value, *args), kwargs))

    # ------------------------------------------------------------------------- the true step

    def on_train_batch_start(self, batch: Any, batch_idx: int, *args: Any) -> Any:
        self._forget_guesses_where_they_are_void()
        if not self._accepted:
            self._compute_round(batch_idx)
        seed_step(self.run_seed, finished_batches(self.trainer), get_rank(), "step")
        return super().on_train_batch_start(batch, batch_idx, *args)

    def training_step(self, batch: Any, batch_idx: int) -> Dict[str, Tensor]:
        self._serving = self._accepted.popleft()
        recorded: Recorded = self._serving.extra
        for args, kwargs in recorded.logs:
            self.log(*args, **kwargs)
        for name, value in self._history.last_figures().items():
            self.log(f"picard/{name}", value)
        recorded.random_state.restore()
        return {"loss": recorded.loss}

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        for name, parameter in self._trained.items():
            parameter.grad = self._serving.gradients[name]

    def on_after_backward(self) -> None:
        """What the system does here it has done in the slot; it is the changes that are made now."""
        SystemBuffers(self).apply(self._serving.extra.changes)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        if not self._serving.finite:  # for hosts that do not leave out such updates themselves
            for parameter in self._trained.values():
                parameter.grad = None
        if group_settings(self.trainer.optimizers[0]) != self._settings[self.trainer.global_step]:
            self._history.missed += 1
            self._restart = True
        self._serving = None

    # -------------------------------------------------------------------------------- rounds

    def _group_names(self) -> List[List[str]]:
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        return [[names[id(p)] for p in group["params"]] for group in self.trainer.optimizers[0].param_groups]

    def _forget_guesses_where_they_are_void(self) -> None:
        """After a checkpoint, and where parameters have been exchanged for others."""
        shown = [id(p) for group in self.trainer.optimizers[0].param_groups for p in group["params"]]
        if self._restart or shown != self._shown_parameters:
            self._history.take_back(len(self._accepted))
            self._accepted.clear()
            self._window.restart()
        self._restart, self._shown_parameters = False, shown

    def _compute_round(self, batch_idx: int) -> None:
        trainer = self.trainer
        step, self._batch_idx = trainer.global_step, batch_idx
        named = dict(self.named_parameters())
        self._trained = {name: named[name] for names in self._group_names() for name in names}
        self._slot_buffers = SystemBuffers(self)
        rows = coming_settings(self, batch_idx, 2 * self.picard.window + 1)
        self._settings = {step + ahead: row for ahead, row in enumerate(rows)}
        state = trainer.optimizers[0].state
        base = State(
            step,
            {name: parameter.data for name, parameter in self._trained.items()},
            self._slot_buffers.auxiliaries(),
            {name: state[parameter] for name, parameter in self._trained.items() if parameter in state},
        )
        self._batches.forget_before(finished_batches(trainer))
        result = self._window.round(base, self._limit(batch_idx))
        self._accepted.extend(result.accepted)
        self._history.add(result)

    def _limit(self, batch_idx: int) -> Optional[int]:
        """The longest window from here: to the end of the epoch or run, or the next change of structure."""
        step, epoch = self.trainer.global_step, self.trainer.current_epoch
        left = batches_left(self.trainer, batch_idx)
        for module in self.modules():
            if isinstance(module, ChangesStructure):
                event = module.next_structure_change(epoch, step)
                left = left if event is None else min(left, event - step)
        return int(left) if math.isfinite(left) else None

    def _evaluate_all(self, points: Sequence[Point]) -> List[Evaluation]:
        """Gradients of the slots, one by one on this device. The system is as before afterwards."""
        real = points[0].parameters
        try:
            return [self._evaluate(point) for point in points]
        finally:
            self._slot_step = self._slot_logs = None
            for name, parameter in self._trained.items():
                parameter.data = real[name]
            self._slot_buffers.install(self._slot_buffers.real)

    @torch.enable_grad()
    def _evaluate(self, point: Point) -> Evaluation:
        ahead = point.step - self.trainer.global_step
        index = finished_batches(self.trainer) + ahead
        batch = self._batches.get(index, point.step)
        for name, parameter in self._trained.items():
            parameter.data = point.parameters[name]
        self._clear_gradients()
        self._slot_buffers.install(self._slot_buffers.real)
        self._slot_buffers.install(self._slot_buffers.slot_values(point.auxiliaries))
        self._slot_step, self._slot_logs = point.step, []
        before = self._slot_buffers.marks()
        seed_step(self.run_seed, index, get_rank(), "step")
        super().on_train_batch_start(batch, self._batch_idx + ahead)
        begun, self._slot_logs = self._slot_buffers.marks(), []
        loss = self._backward_of_step(batch, self._batch_idx + ahead)
        recorded = Recorded(loss, self._slot_logs, self._slot_buffers.changes_since(begun), RandomState.now())
        gradients = {name: parameter.grad for name, parameter in self._trained.items()}
        self._clear_gradients()
        return Evaluation.of(gradients, self._slot_buffers.changes_since(before), recorded)

    def _backward_of_step(self, batch: Any, batch_idx: int) -> Tensor:
        with self.trainer.precision_plugin.train_step_context():
            output = super().training_step(batch, batch_idx)
        loss = output["loss"] if isinstance(output, dict) else output
        if not isinstance(loss, Tensor):
            raise ValueError("picard: expected a training step that returns its loss")
        loss.backward()
        super().on_after_backward()
        return loss.detach()

    def _clear_gradients(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None


threestudio.register("turboprop-picard")(PicardSystem)
threestudio.register("picard")(PicardSystem)
