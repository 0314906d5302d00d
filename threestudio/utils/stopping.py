"""A run that is stopped by hand.

SIGINT (Ctrl-C) or SIGTERM lets the step end and be saved; a second one ends at once.
"""

import os
import shlex
import signal
import threading
import time
from argparse import Namespace
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from omegaconf import DictConfig

from threestudio.utils.program import program_words
from threestudio.utils.trial_folder import last_checkpoint

STOPPED_EXIT_CODE = 130  # 128 + SIGINT, as shells have it
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# torchrun passes on what the terminal has sent to its processes already: within this time it is one signal, seconds.
_SAME_SIGNAL = 1.0


class StoppedByHand(BaseException):
    """The run ends because it was told to. No Exception, so that nothing on the way takes it for an error."""


class StopSignals:
    """What SIGINT and SIGTERM do to a run: while it trains they are noted, else they raise StoppedByHand."""

    def __init__(self) -> None:
        self.asked = False
        self.training = False
        self._asked_at = 0.0
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        """Takes both signals, also from a handler that was set since. Only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            for signum in _SIGNALS:
                self._previous.setdefault(signum, signal.getsignal(signum))
                signal.signal(signum, self._handle)

    def restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if not self.training:
            raise StoppedByHand
        under_torchrun = dist.is_torchelastic_launched()
        if not self.asked:
            self.asked, self._asked_at = True, time.monotonic()
            os.write(2, b"\nStopping when this step is done and saved; once more ends at once.\n")
            if not under_torchrun:  # the system ends the process, in the middle of a long operation too
                for number in _SIGNALS:
                    signal.signal(number, signal.SIG_DFL)
        elif time.monotonic() - self._asked_at > _SAME_SIGNAL:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)


class NotesStopSignals(pl.Callback):
    """Lets the signals wait for the end of a step while a run trains, and brings its processes to one answer."""

    def __init__(self, signals: StopSignals) -> None:
        self.signals = signals
        self._group: dist.ProcessGroup | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.signals.install()  # over Lightning's, which waits for other processes within the handler
        self.signals.training = True
        if trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo")  # of the CPUs: asking makes no GPU wait

    def _end(self) -> None:
        self.signals.training = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._end()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._end()

    def asked(self) -> bool:
        """Whether any process of the run was told to stop. All of them must ask together."""
        if self._group is None:
            return self.signals.asked
        answer = torch.tensor([int(self.signals.asked)])
        try:
            dist.all_reduce(answer, op=dist.ReduceOp.MAX, group=self._group)
        except RuntimeError:
            return False  # a process is gone: the step's own exchange, which comes next, says which
        return bool(answer.item())


def resume_command(cfg: DictConfig, program: str, gpu: str | None) -> str | None:
    """The command that goes on with a trial from its last checkpoint; None without one."""
    last = last_checkpoint(cfg.trial_dir)
    if last is None:
        return None
    processes, here = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if dist.is_torchelastic_launched():
        nodes = ["--nnodes", str(processes // here)] if processes > here else []
        words = ["torchrun", *nodes, "--nproc_per_node", str(here), program]  # which takes a command's script too
    else:
        words = program_words(program)
    parsed = os.path.join(cfg.trial_dir, "configs", "parsed.yaml")
    flags = ["--gpu", gpu] if gpu is not None else []
    return shlex.join([*words, "--config", parsed, "--train", *flags, f"resume={last}"])


def stop_line(cfg: DictConfig, trains: bool, args: Namespace, step: int | None) -> str:
    """What a run that was stopped says last."""
    if not trains:
        return "Stopped by hand."
    where = "before its first step" if step is None else f"at step {step}"
    command = resume_command(cfg, args.program, args.gpu)
    way = f"go on with: {command}" if command else "there is no checkpoint to go on from."
    return f"Stopped by hand {where}; {way}"
