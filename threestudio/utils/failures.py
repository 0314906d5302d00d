"""Which errors are one line, and which show where they come from.

One line is for errors that are raised for the user: UserError and what is registered here. Anything else is a bug, of
this project or of a library, and keeps its traceback.
"""

import sys
import traceback
from dataclasses import dataclass

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from threestudio.utils.errors import UserError
from threestudio.utils.extensions import ExtensionError
from threestudio.utils.full_disk import full_disk_error, full_disk_line

USAGE_EXIT_CODE = 2
FAILURE_EXIT_CODE = 1


@dataclass
class RunSoFar:
    """How far a run has come, for what is said when it ends early."""

    cfg: DictConfig | None = None
    trainer: pl.Trainer | None = None
    started: bool = False  # got past building: training, validation, testing or export has begun
    trained: bool = False  # training has begun

    @property
    def step(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_step

    @property
    def trial_dir(self) -> str:
        return "" if self.cfg is None else self.cfg.trial_dir


def report(error: BaseException, verbose: bool, code: int, line: str | None = None) -> int:
    """Prints the one line of an error, after its traceback with `verbose`. Returns `code`."""
    if verbose:
        traceback.print_exception(error, file=sys.stderr)
    text = " ".join((line or str(error)).split()) or type(error).__name__
    print(f"error: {text}", file=sys.stderr)
    return code


def reported(error: Exception, so_far: RunSoFar, verbose: bool) -> int | None:
    """The exit code of an error that is meant for the user, whose line is printed; None for any other."""
    if isinstance(error, (UserError, ExtensionError)):
        return report(error, verbose, USAGE_EXIT_CODE)
    if isinstance(error, ConnectionError):  # to another process of the run, which is gone: no bug of this one
        return report(error, verbose, FAILURE_EXIT_CODE)
    full = full_disk_error(error, so_far.trial_dir)
    if full is not None:
        line = full_disk_line(full, so_far.trial_dir, so_far.step)
        return report(error, verbose, FAILURE_EXIT_CODE, line)
    if not so_far.started and _of_lightnings_settings(error):
        return report(error, verbose, USAGE_EXIT_CODE, f"trainer: {error}")
    if not so_far.started and _of_a_checkpoint_that_does_not_fit(error):
        resume = "" if so_far.cfg is None else so_far.cfg.resume
        return report(error, verbose, USAGE_EXIT_CODE, f"resume: {resume} does not fit this config: {error}")
    return None


def _of_lightnings_settings(error: BaseException) -> bool:
    """Whether Lightning itself refuses a setting, alone or beside others."""
    if isinstance(error, MisconfigurationException):
        return True
    raised_in = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)][-1:]
    return type(error) is ValueError and raised_in[:1] != [] and raised_in[0].startswith("pytorch_lightning.")


def _of_a_checkpoint_that_does_not_fit(error: BaseException) -> bool:
    """Whether torch refused a state while Lightning gave a checkpoint's states to the system and its optimizers."""
    if not isinstance(error, (RuntimeError, ValueError, KeyError)):
        return False
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    restores = "pytorch_lightning.trainer.connectors.checkpoint_connector" in frames
    return restores and frames[-1].split(".")[0] == "torch"
