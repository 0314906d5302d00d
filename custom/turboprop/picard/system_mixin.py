"""`picard`: trains any system by Picard iterations.

    system_type: "dreamfusion-system:picard"

Each step of the trainer is one step of training, as ever, but its gradient comes from a round: when none is left, the
gradients of a window of coming steps are computed at guessed states, and those whose guess proves near enough are
handed to the coming steps one by one. Everything else of a step (update, schedules, changes of the number of Gaussians,
logs, validation, checkpoints) is the system's and the trainer's own, at the true state and the true step.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Deque, Dict, List, Optional, Sequence

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import threestudio
from threestudio.utils.errors import UserError
from threestudio.utils.keyed_random import seed_step

from ..system_mixin import SystemMixin
from .batched.surroundings import parts_of
from .beside import Beside, names_beside, note_of, split
from .coming_steps import ComingBatches, batches_left, coming_settings, finished_batches
from .contract import ChangesStructure
from .engine.state import Evaluation, Gradients, Point, State, all_finite
from .engine.updates import GroupSettings, OptimizerUpdate, group_settings
from .executors import Distributed, InProcess, check_agreement
from .history import History
from .keys import RandomState
from .processes.accumulated import Accumulated
from .processes.communication import Communication
from .processes.exchange import Movable, moved
from .processes.pace import Pace, timed
from .processes.shards import Shards, reads_parameters
from .processes.watching import WatchesRanks
from .settings import EXCHANGE_TYPES, build_window, picard_config
from .system_buffers import SystemBuffers, buffers_left_alone


@dataclass
class Recorded(Movable):
    """What a slot's training step leaves besides gradients, to be handed to the true step."""

    loss: Tensor
    logs: List[tuple]  # (arguments, keyword arguments) of self.log
    random_state: RandomState  # at the end
    not_finite: List[str]  # names of parameters whose gradients are not
    beside: Gradients  # of weights beside the state, where their updates are the true steps' too; stays in its process

    def to(self, device: torch.device) -> "Recorded":
        return replace(self, loss=self.loss.to(device), logs=moved(self.logs, device))


class PicardSystem(SystemMixin):
    """Its own names begin with two underscores, so that they meet no name of the system that it is mixed with."""

    config_group = "picard"
    run_seed = 0  # of hosts that do not say
    __slot_step: Optional[int] = None  # the step that a slot is computing
    __slot_logs: Optional[List[tuple]] = None
    __serving: Optional[Evaluation] = None
    __shards: Optional[Shards] = None  # of several processes
    processes_step_together = True

    def configure(self) -> None:
        self.picard = picard_config(self.cfg.picard)
        self.__accepted: Deque[Evaluation] = deque()
        self.__history = History()
        self.__saved_window: Optional[Dict[str, Any]] = None
        super().configure()

    # ----------------------------------------------------------------------------- lifecycle

    def configure_callbacks(self) -> List[Any]:
        return [*super().configure_callbacks(), WatchesRanks(self.picard.dead_after)]

    def on_fit_start(self) -> None:
        self.__check_trainer()
        super().on_fit_start()

    def on_train_start(self) -> None:
        super().on_train_start()
        if len(self.trainer.optimizers) != 1:
            raise UserError(f"picard: expected a system with one optimizer, got {len(self.trainer.optimizers)}")
        optimizer = self.trainer.optimizers[0]
        self.__names_beside = names_beside(self) if self.picard.beside == "local" else set()
        state_groups, groups_beside = split(self.__group_names(), self.__names_beside)
        update = OptimizerUpdate(optimizer, state_groups, lambda step: self.__settings[step])
        self.__update_beside = OptimizerUpdate(optimizer, groups_beside, lambda step: self.__settings[step])
        if self.trainer.world_size > 1:
            self.__shards = Shards(Communication(), optimizer, state_groups)
        self.__window = build_window(self.picard, self.__evaluate_all, update)
        if self.__shards is not None:
            self.__window.total = self.__shards.communication.sum
        self.__accumulated = Accumulated(None if self.__shards is None else self.__shards.communication)
        if self.__saved_window is not None:
            self.__window.load_state_dict(self.__saved_window)
        self.__batches = ComingBatches(self)
        self.__local = self.__local_executor()
        self.__pace = Pace(self.trainer.world_size, self.picard.slow_ratio)
        self.__gathers_each_step = any(reads_parameters(part) for part in (*parts_of(self), *self.trainer.callbacks))
        if self.__shards is not None and self.__gathers_each_step:
            threestudio.debug("Picard: parameters are gathered after each step, for what reads them there")
        if isinstance(self.trainer.model, DistributedDataParallel):
            self.trainer.model.require_backward_grad_sync = False  # gradients are exchanged here, slot by slot
        self.__settings: Dict[int, GroupSettings] = {}
        self.__shown_parameters: List[int] = []
        self.__restart = True
        if any(groups_beside):
            threestudio.info(note_of(groups_beside, self.trainer.world_size))

    def __local_executor(self) -> Any:
        if self.picard.executor == "in_process":
            return InProcess(self.__evaluate)
        if importlib.util.find_spec("greenlet") is None:
            raise UserError("system.picard.executor: batched needs the package greenlet: pip install greenlet")
        from .batched.executor import Batched

        batched = Batched(self, self.__evaluate, self.picard.batched_slots)
        if not batched.teachers():
            threestudio.info("Picard: batched finds no teacher here, so slots have only their backward pass in common")
        return batched

    def __check_trainer(self) -> None:
        trainer = self.trainer
        if not self.automatic_optimization:
            raise UserError("picard: expected a system with automatic optimization")
        if trainer.accumulate_grad_batches != 1:
            raise UserError(f"trainer.accumulate_grad_batches: picard takes 1, got {trainer.accumulate_grad_batches}")
        if trainer.gradient_clip_val:
            raise UserError("trainer.gradient_clip_val: picard takes none")
        if str(trainer.precision).startswith("16"):
            raise UserError(f"trainer.precision: picard takes 32 or bf16-mixed, got {trainer.precision}")
        if any(optimizer.defaults.get("max_grad_norm") for optimizer in trainer.optimizers):  # Adan's
            raise UserError("system.optimizer.args.max_grad_norm: picard takes 0, as an update has to be elementwise")

    # Where a rank's shard of the parameters is not enough. The end of an epoch is mostly known beforehand.

    def state_dict(self, *args: Any, **kwargs: Any) -> Dict[str, Any]:
        """All ranks must ask for it together, as they do for a checkpoint."""
        self.__gather()
        return super().state_dict(*args, **kwargs)

    def __gather(self) -> None:
        if self.__shards is not None:
            self.__shards.gather()
            self.__accumulated.add_up(SystemBuffers(self))

    def on_validation_model_eval(self) -> None:
        if self.__shards is not None:
            self.__shards.gather_parameters()
        super().on_validation_model_eval()

    def on_train_epoch_end(self) -> None:
        self.__gather()
        super().on_train_epoch_end()

    def on_train_end(self) -> None:
        self.__gather()
        self.__shards = None
        super().on_train_end()

    def on_fit_end(self) -> None:
        super().on_fit_end()
        if self.__history.rows:
            threestudio.info(self.__history.summary_line())
            if self.picard.report and self._save_dir is not None and self.trainer.is_global_zero:
                self.__history.save(self.get_save_path("picard.csv"))

    def on_save_checkpoint(self, checkpoint: Dict[str, Any]) -> None:
        """A checkpoint ends the window: a resumed run goes on from the same state, and no guesses either."""
        super().on_save_checkpoint(checkpoint)
        if self.__history.rows:
            self.__history.take_back(len(self.__accepted), "a checkpoint")
            self.__accepted.clear()
            checkpoint["picard"] = {"window": self.__window.state_dict(), "history": self.__history.rows_as_lists()}
            checkpoint["picard_seconds"] = self.__history.seconds_as_lists()  # apart: no two runs have the same
            self.__restart = True

    def on_load_checkpoint(self, checkpoint: Dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get("picard")
        if saved is not None:
            self.__saved_window = saved["window"]
            self.__history = History.of(saved["history"], checkpoint["picard_seconds"])

    @property
    def global_step(self) -> int:
        return super().global_step if self.__slot_step is None else self.__slot_step

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        if self.__slot_logs is None:
            super().log(name, value, *args, **kwargs)
        else:
            self.__slot_logs.append(((name, value.detach() if isinstance(value, Tensor) else value, *args), kwargs))

    # ------------------------------------------------------------------------- the true step

    def on_train_batch_start(self, batch: Any, batch_idx: int, *args: Any) -> Any:
        self.__forget_guesses_where_they_are_void()
        if not self.__accepted:
            self.__compute_round(batch_idx)
        seed_step(self.run_seed, finished_batches(self.trainer), stream="step")
        buffers = SystemBuffers(self)
        buffers.install(buffers.slot_values(buffers.auxiliaries()))  # what changes them has done so in the slot
        with buffers_left_alone(self):
            answer = super().on_train_batch_start(batch, batch_idx, *args)
        buffers.install(buffers.real)
        return answer

    def training_step(self, batch: Any, batch_idx: int) -> Dict[str, Tensor]:
        self.__serving = self.__accepted.popleft()
        recorded: Recorded = self.__serving.extra
        for args, kwargs in recorded.logs:
            self.log(*args, **kwargs)
        for name, value in self.__history.last_figures().items():
            self.log(f"picard/{name}", value)
        recorded.random_state.restore()
        return {"loss": recorded.loss}

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        gradients, recorded = self.__serving.gradients, self.__serving.extra
        if self.__shards is not None:
            gradients = {}  # the shards move on by their own; but the host is to see what is not finite
            if not self.__serving.finite:
                names = recorded.not_finite or self.__trained
                gradients = {name: torch.full_like(self.__trained[name], math.nan) for name in names}
        for name, parameter in self.__trained.items():
            parameter.grad = gradients.get(name)
        for name, parameter in self.__learners.items():
            parameter.grad = recorded.beside.get(name)

    def on_after_backward(self) -> None:
        """What the system does here it has done in the slot; it is the changes that are made now."""
        buffers = SystemBuffers(self)
        buffers.apply(self.__serving.changes)
        self.__accumulated.accept(self.trainer.global_step, buffers)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        step = self.trainer.global_step
        if not self.__serving.finite:  # for hosts that do not leave out such updates themselves
            self.__clear_gradients()
        if group_settings(self.trainer.optimizers[0]) != self.__settings[step]:
            self.__history.missed += 1
            self.__restart = True
        if self.__shards is not None:
            self.__shards.advance(step, self.__serving.gradients if self.__serving.finite else None)
            if self.__gathers_each_step or step + 1 == self.__event:
                self.__gather()
        self.__serving = None

    # -------------------------------------------------------------------------------- rounds

    def __group_names(self) -> List[List[str]]:
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        return [[names[id(p)] for p in group["params"]] for group in self.trainer.optimizers[0].param_groups]

    def __forget_guesses_where_they_are_void(self) -> None:
        """After a checkpoint, and where parameters have been exchanged for others."""
        shown = [id(p) for group in self.trainer.optimizers[0].param_groups for p in group["params"]]
        if self.__restart or shown != self.__shown_parameters:
            self.__history.take_back(len(self.__accepted), "exchanged parameters")
            self.__accepted.clear()
            self.__window.restart()
        self.__restart, self.__shown_parameters = False, shown

    def __compute_round(self, batch_idx: int) -> None:
        trainer = self.trainer
        step, self.__batch_idx = trainer.global_step, batch_idx
        named = dict(self.named_parameters())
        trained = {name: named[name] for names in self.__group_names() for name in names}
        self.__trained = {name: p for name, p in trained.items() if name not in self.__names_beside}
        self.__learners = {name: p for name, p in trained.items() if name in self.__names_beside}
        self.__slot_buffers = SystemBuffers(self)
        rows = coming_settings(self, batch_idx, 2 * self.picard.window + 1)
        self.__settings = {step + ahead: row for ahead, row in enumerate(rows)}
        self.__batches.forget_before(finished_batches(trainer))
        base, limit = self.__base(step), self.__limit(batch_idx)
        self.__event = None if limit is None else step + limit
        begun = time.perf_counter()
        result = self.__window.round(base, limit)
        self.__accepted.extend(result.accepted)
        self.__history.add(result, self.__pace.of_round(self.__slot_seconds, time.perf_counter() - begun))
        for line in self.__pace.warnings(self.__slot_seconds):
            threestudio.warn(line)

    def __base(self, step: int) -> State:
        """The true state; of several processes this one's part."""
        optimizer, auxiliaries = self.trainer.optimizers[0], self.__slot_buffers.auxiliaries()
        if self.__shards is None:
            parameters = {name: parameter.data for name, parameter in self.__trained.items()}
            moments = {name: optimizer.state[p] for name, p in self.__trained.items() if p in optimizer.state}
            self.__executor = partial(timed, self.__local)
            return State(step, parameters, auxiliaries, moments)
        base = self.__shards.base(self.__trained, step, auxiliaries)
        if len(self.__history.rows) % self.picard.check_every == 0:
            check_agreement(self.__shards.communication, auxiliaries, step, "buffers")
        communication, dtype = self.__shards.communication, EXCHANGE_TYPES[self.picard.exchange]
        self.__executor = Distributed(partial(timed, self.__local), communication, self.__shards.sharding, dtype)
        return base

    def __limit(self, batch_idx: int) -> Optional[int]:
        """The longest window from here: to the end of the epoch or run, or the next change of structure."""
        step, epoch = self.trainer.global_step, self.trainer.current_epoch
        left = batches_left(self.trainer, batch_idx)
        for module in self.modules():
            if isinstance(module, ChangesStructure):
                event = module.next_structure_change(epoch, step)
                left = left if event is None else min(left, event - step)
        return int(left) if math.isfinite(left) else None

    def __evaluate_all(self, points: Sequence[Point]) -> List[Evaluation]:
        """Gradients of all slots. The system is as before afterwards."""
        real = {name: parameter.data for name, parameter in self.__trained.items()}
        several = self.__shards is not None
        self.__accumulated.begin_round()
        self.__beside = Beside(self.trainer.optimizers[0], self.__update_beside, self.__learners, keeps_all=several)
        try:
            evaluations = self.__executor(points)
            self.__slot_seconds = [evaluation.seconds for evaluation in evaluations]
            return evaluations
        finally:
            self.__slot_step = self.__slot_logs = None
            for name, parameter in self.__trained.items():
                parameter.data = real[name]
            self.__beside.end_round()
            self.__slot_buffers.install(self.__slot_buffers.real)

    @torch.enable_grad()
    def __evaluate(self, point: Point) -> Evaluation:
        ahead = point.step - self.trainer.global_step
        index = finished_batches(self.trainer) + ahead
        batch = self.__batches.get(index, point.step)
        values = {**point.parameters, **self.__beside.values()}
        trained = self.__local.bind({**self.__trained, **self.__learners}, values)
        self.__clear_gradients()
        self.__slot_buffers.install(self.__slot_buffers.real)
        self.__slot_buffers.install(self.__slot_buffers.slot_values(point.auxiliaries))
        self.__slot_step, self.__slot_logs = point.step, []
        before = self.__slot_buffers.marks()
        seed_step(self.run_seed, index, stream="step")
        super().on_train_batch_start(batch, self.__batch_idx + ahead)
        self.__slot_logs = []
        loss = self.__backward_of_step(batch, self.__batch_idx + ahead)
        random_state = RandomState.now()
        gradients = {name: trained[name].grad for name in self.__trained}
        beside = {name: trained[name].grad for name in self.__learners}
        finite = all_finite(gradients) and all_finite(beside)
        served = self.__beside.learn(point.step, beside, finite)
        self.__clear_gradients()
        not_finite = [] if finite else [name for name, value in gradients.items() if not all_finite({name: value})]
        recorded = Recorded(loss, self.__slot_logs, random_state, not_finite, served)
        changes, added = self.__slot_buffers.split(self.__slot_buffers.changes_since(before))
        self.__accumulated.of_slot(point.step, added)
        return Evaluation(gradients, changes, finite, recorded)

    def __backward_of_step(self, batch: Any, batch_idx: int) -> Tensor:
        with self.trainer.precision_plugin.train_step_context():
            output = super().training_step(batch, batch_idx)
        loss = output["loss"] if isinstance(output, dict) else output
        if not isinstance(loss, Tensor):
            raise UserError("picard: expected a training step that returns its loss")
        self.__local.backward(loss)
        super().on_after_backward()
        return loss.detach()

    def __clear_gradients(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None


threestudio.register("turboprop-picard")(PicardSystem)
threestudio.register("picard")(PicardSystem)
