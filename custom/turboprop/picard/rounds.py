"""Rounds of Picard iterations in place of a trainer's own gradients.

Each step of the trainer is one step of training, as ever, but its gradient comes from a round: when none is left, the
gradients of a window of coming steps are computed at guessed states, and those whose guess proves near enough are
handed to the coming steps one by one. Everything else of a step (update, schedules, changes of the number of Gaussians,
logs, validation, checkpoints) is the system's and the trainer's own, at the true state and the true step.
"""

from __future__ import annotations

import math
import time
from collections import deque
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import threestudio
from threestudio.utils.errors import UserError
from threestudio.utils.keyed_random import seed_step
from threestudio.utils.trainer_settings import UNSCALED_PRECISIONS

from .coming_steps import ComingBatches, batches_left, coming_settings, finished_batches
from .components import reachable_components
from .contract import ChangesStructure
from .engine.state import Evaluation, State
from .engine.updates import GroupSettings, OptimizerUpdate, group_settings
from .executors import Distributed, check_agreement, local_executor
from .history import History
from .local_weights import LocalWeights, local_weight_names, local_weights_note, split_groups
from .processes.accumulated import Accumulated
from .processes.communication import Communication
from .processes.pace import Pace, timed
from .processes.shards import Shards, reads_parameters
from .settings import EXCHANGE_TYPES, PicardConfig, build_window
from .slots import RoundInputs, SlotEvaluator, StepRecord
from .system_buffers import SystemBuffers, buffers_left_alone


class PicardRounds(pl.Callback):
    """Computes the rounds of a run, and serves the trainer's steps with what they have found.

    The trainer calls the `on_` methods, and the system's mixin all others.
    """

    def __init__(self, config: PicardConfig, system: Any, own: Any) -> None:
        self.config = config
        self._system = system
        self._own = own  # the system's hooks, without those that are mixed in
        self._history = History()
        self._accepted: deque[Evaluation] = deque()  # of coming steps
        self._serving: Evaluation | None = None  # of the step that runs
        self._saved_window: dict[str, Any] | None = None
        self._shards: Shards | None = None  # of several processes

    # ----------------------------------------------------------------------------- lifecycle

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Raises UserError for what rounds cannot follow, naming the key."""
        if not self._system.automatic_optimization:
            raise UserError("picard: expected a system with automatic optimization")
        if trainer.accumulate_grad_batches != 1:
            raise UserError(f"trainer.accumulate_grad_batches: picard takes 1, got {trainer.accumulate_grad_batches}")
        if trainer.gradient_clip_val:
            raise UserError("trainer.gradient_clip_val: picard takes none")
        if str(trainer.precision) not in UNSCALED_PRECISIONS:
            raise UserError(f"trainer.precision: picard takes 32 or bf16-mixed, got {trainer.precision}")
        if any(optimizer.defaults.get("max_grad_norm") for optimizer in trainer.optimizers):  # Adan's
            raise UserError("system.optimizer.args.max_grad_norm: picard takes 0, as an update has to be elementwise")

    def start(self) -> None:
        """Training begins: optimizer, schedules and processes are there."""
        trainer, config = self._system.trainer, self.config
        if len(trainer.optimizers) != 1:
            raise UserError(f"picard: expected a system with one optimizer, got {len(trainer.optimizers)}")
        self._settings: dict[int, GroupSettings] = {}  # of the optimizer's groups, by step
        self._shown_parameters: list[int] = []
        self._restart = True
        self._local_names = local_weight_names(self._system) if config.learning_teacher == "local" else set()
        state_groups, local_groups = split_groups(self._group_names(), self._local_names)
        update, self._local_update = (
            OptimizerUpdate(trainer.optimizers[0], groups, lambda step: self._settings[step])
            for groups in (state_groups, local_groups)
        )
        if any(local_groups):
            threestudio.info(local_weights_note(local_groups, trainer.world_size))
        communication = Communication() if trainer.world_size > 1 else None
        if communication is not None:
            self._shards = Shards(communication, trainer.optimizers[0], state_groups)
        self._accumulated = Accumulated(communication)
        self._batches = ComingBatches(self._system)
        self._slots = SlotEvaluator(self._system, self._own, self._batches, self._accumulated)
        self._slots.executor = local_executor(config.executor, self._system, self._slots.evaluate)
        self._window = build_window(config, self._slots.evaluate_all, update)
        self._window.total = None if communication is None else communication.sum
        if self._saved_window is not None:
            self._window.load_state_dict(self._saved_window)
        self._pace = Pace(trainer.world_size, config.slow_ratio)
        self._watch_parameters()

    def _watch_parameters(self) -> None:
        """Settles when several processes have to make parameters whole."""
        trainer = self._system.trainer
        parts = (*reachable_components(self._system), *trainer.callbacks)
        self._gathers_each_step = any(reads_parameters(part) for part in parts)
        if self._shards is not None and self._gathers_each_step:
            threestudio.debug("Picard: parameters are gathered after each step, for what reads them there")
        if isinstance(trainer.model, DistributedDataParallel):
            trainer.model.require_backward_grad_sync = False  # gradients are exchanged here, slot by slot

    def gather(self) -> None:
        """The system and the optimizer are whole, where a rank's shard is not enough. All ranks must call."""
        if self._shards is not None:
            self._shards.gather()
            self._accumulated.add_up(SystemBuffers(self._system))

    def gather_parameters(self) -> None:
        """The system's parameters are whole. All ranks must call."""
        if self._shards is not None:
            self._shards.gather_parameters()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.gather()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.gather()
        self._shards = None

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Says and saves what the rounds were like."""
        if self._history.rows:
            threestudio.info(self._history.summary_line())
            if self.config.report and self._system._save_dir is not None and trainer.is_global_zero:
                self._history.save(self._system.get_save_path("picard.csv"))

    def save(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint ends the window: a resumed run goes on from the same state, and no guesses either."""
        if self._history.rows:
            self._history.take_back(len(self._accepted), "a checkpoint")
            self._accepted.clear()
            checkpoint["picard"] = {"window": self._window.state_dict(), "history": self._history.rows_as_lists()}
            checkpoint["picard_seconds"] = self._history.seconds_as_lists()  # apart: no two runs have the same
            self._restart = True

    def load(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("picard")
        if saved is not None:
            self._saved_window = saved["window"]
            self._history = History.of(saved["history"], checkpoint["picard_seconds"])

    # ------------------------------------------------------------------------- the true step

    def begin_step(self, batch: Any, batch_index: int, *args: Any) -> Any:
        """What the system's on_train_batch_start answers; there is a gradient for the step afterwards."""
        self._forget_guesses_where_they_are_void()
        if not self._accepted:
            self._compute_round(batch_index)
        seed_step(self._system.run_seed, finished_batches(self._system.trainer))  # for all ranks as for one
        buffers = SystemBuffers(self._system)
        buffers.install(buffers.slot_values(buffers.auxiliaries()))  # what changes them has done so in the slot
        with buffers_left_alone(self._system):
            answer = self._own.on_train_batch_start(batch, batch_index, *args)
        buffers.install(buffers.real)
        return answer

    def serve_step(self) -> dict[str, Tensor]:
        """In the place of a training step: the loss and the logs of its slot."""
        self._serving = self._accepted.popleft()
        record: StepRecord = self._serving.extra
        for args, kwargs in record.logs:
            self._system.log(*args, **kwargs)
        for name, value in self._history.last_figures().items():
            self._system.log(f"picard/{name}", value)
        record.random_state.restore()
        return {"loss": record.loss}

    def serve_gradients(self) -> None:
        """In the place of a backward pass."""
        gradients, record = self._serving.gradients, self._serving.extra
        trained = self._slots.inputs.trained
        if self._shards is not None:
            gradients = {}  # the shards move on by their own; but the host is to see what is not finite
            if not self._serving.finite:
                gradients = {name: torch.full_like(trained[name], math.nan) for name in record.not_finite or trained}
        for name, parameter in trained.items():
            parameter.grad = gradients.get(name)
        for name, parameter in self._slots.inputs.local.items():
            parameter.grad = record.local_gradients.get(name)

    def serve_buffers(self) -> None:
        """In the place of what a system does after its backward pass, which the slot has done: buffers change."""
        buffers = SystemBuffers(self._system)
        buffers.apply(self._serving.changes)
        self._accumulated.accept(self._system.trainer.global_step, buffers)

    def finish_step(self) -> None:
        """The optimizer's update comes next; of several processes each updates its shard here."""
        trainer = self._system.trainer
        step = trainer.global_step
        if not self._serving.finite:  # for hosts that do not leave out such updates themselves
            self._slots.clear_gradients()
        if group_settings(trainer.optimizers[0]) != self._settings[step]:
            self._history.missed += 1
            self._restart = True
        if self._shards is not None:
            self._shards.advance(step, self._serving.gradients if self._serving.finite else None)
            if self._gathers_each_step or step + 1 == self._event:
                self.gather()
        self._serving = None

    # -------------------------------------------------------------------------------- rounds

    def _group_names(self) -> list[list[str]]:
        names = {id(parameter): name for name, parameter in self._system.named_parameters()}
        groups = self._system.trainer.optimizers[0].param_groups
        return [[names[id(parameter)] for parameter in group["params"]] for group in groups]

    def _forget_guesses_where_they_are_void(self) -> None:
        """After a checkpoint, and where parameters have been exchanged for others."""
        shown = [id(p) for group in self._system.trainer.optimizers[0].param_groups for p in group["params"]]
        if self._restart or shown != self._shown_parameters:
            self._history.take_back(len(self._accepted), "exchanged parameters")
            self._accepted.clear()
            self._window.restart()
        self._restart, self._shown_parameters = False, shown

    def _compute_round(self, batch_index: int) -> None:
        trainer = self._system.trainer
        step, optimizer = trainer.global_step, trainer.optimizers[0]
        rows = coming_settings(self._system, batch_index, 2 * self.config.window + 1)
        self._settings = {step + ahead: row for ahead, row in enumerate(rows)}
        self._batches.forget_before(finished_batches(trainer))
        named = dict(self._system.named_parameters())
        optimized = {name: named[name] for names in self._group_names() for name in names}
        trained = {name: p for name, p in optimized.items() if name not in self._local_names}
        local = {name: p for name, p in optimized.items() if name in self._local_names}
        buffers = SystemBuffers(self._system)
        weights = LocalWeights(optimizer, self._local_update, local, keeps_all=self._shards is not None)
        base, limit = self._base(step, trained, buffers.auxiliaries()), self._limit(batch_index)
        executor = partial(timed, self._slots.executor)
        if self._shards is not None:
            dtype = EXCHANGE_TYPES[self.config.exchange]
            executor = Distributed(executor, self._shards.communication, self._shards.sharding, dtype)
        self._slots.inputs = RoundInputs(batch_index, trained, local, weights, buffers, executor)
        self._event = None if limit is None else step + limit
        begun = time.perf_counter()
        result = self._window.round(base, limit)
        self._accepted.extend(result.accepted)
        self._history.add(result, self._pace.of_round(self._slots.seconds, time.perf_counter() - begun))
        for line in self._pace.warnings(self._slots.seconds):
            threestudio.warn(line)

    def _base(self, step: int, trained: dict[str, nn.Parameter], auxiliaries: dict[str, Tensor]) -> State:
        """The true state; of several processes this one's part."""
        if self._shards is None:
            optimizer = self._system.trainer.optimizers[0]
            moments = {name: optimizer.state[p] for name, p in trained.items() if p in optimizer.state}
            return State(step, {name: parameter.data for name, parameter in trained.items()}, auxiliaries, moments)
        base = self._shards.base(trained, step, auxiliaries)
        if len(self._history.rows) % self.config.check_every == 0:
            check_agreement(self._shards.communication, auxiliaries, step, "buffers")
        return base

    def _limit(self, batch_index: int) -> int | None:
        """The longest window from here: to the end of the epoch or run, or the next change of structure."""
        trainer = self._system.trainer
        left = batches_left(trainer, batch_index)
        for module in self._system.modules():
            if isinstance(module, ChangesStructure):
                event = module.next_structure_change(trainer.current_epoch, trainer.global_step)
                left = left if event is None else min(left, event - trainer.global_step)
        return int(left) if math.isfinite(left) else None
