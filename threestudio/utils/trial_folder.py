"""A trial's folder has one owner: it is made by one run, locked while that trains, and left alone by others."""

import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from omegaconf import DictConfig

import threestudio
from threestudio.utils.errors import UserError
from threestudio.utils.misc import get_rank
from threestudio.utils.restarts import restart_count

LOCK_FILE = ".lock"  # in the trial's folder; who holds it writes itself into it


def last_checkpoint(trial_dir: str) -> Path | None:
    """The newest checkpoint of a trial, by its time: each is whole, as they are written aside and renamed."""
    found = sorted(Path(trial_dir, "ckpts").glob("*.ckpt"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    return found[-1] if found else None


def check_unused(cfg: DictConfig) -> None:
    """Raises UserError where training would mix its checkpoints with those of an earlier run, or of one that runs."""
    if cfg.stamped_now or get_rank() != 0:
        return
    holder = _held_by(cfg.trial_dir)
    if holder is not None:
        raise _in_use(cfg.trial_dir, holder)
    _check_checkpoints(cfg)


def _check_checkpoints(cfg: DictConfig) -> None:
    own = last_checkpoint(cfg.trial_dir)
    if own is None or restart_count() > 0:  # a restart by torchrun has been led to its own already
        return
    last = own.with_name("last.ckpt") if own.with_name("last.ckpt").exists() else own
    ways = f"resume={last} goes on with it; another tag=... begins a new one"
    if cfg.resume is None:
        raise UserError(f"tag: {cfg.trial_dir} has checkpoints of an earlier run; {ways}")
    if Path(cfg.resume).resolve().parent != own.resolve().parent:
        raise UserError(
            f"resume: {cfg.resume} is of another trial, and {cfg.trial_dir} has checkpoints of an earlier run; {ways}"
        )


@contextmanager
def owned_trial_folder(cfg: DictConfig, trains: bool) -> Iterator[None]:
    """Makes the trial's folder for the time of the block; with `trains` nobody else may train in it.

    Where the timestamp is of this start and another run has had the same, this one's gets a number. Raises UserError.
    """
    if get_rank() != 0:
        yield
        return
    try:
        if cfg.stamped_now:
            _make_new(cfg)
        else:
            os.makedirs(cfg.trial_dir, exist_ok=True)
    except OSError as error:
        raise UserError(f"exp_root_dir: cannot make the folder {cfg.trial_dir}: {error.strerror}") from error
    try:
        with tempfile.TemporaryFile(dir=cfg.trial_dir):
            pass
    except OSError as error:
        raise UserError(f"exp_root_dir: cannot write into {cfg.trial_dir}: {error.strerror}") from error
    if not trains:
        yield
        return
    with _locked(cfg.trial_dir):
        if not cfg.stamped_now:
            _check_checkpoints(cfg)  # of a run that has ended since this one looked
        yield


def _make_new(cfg: DictConfig) -> None:
    """Makes a folder that was not there, and puts its name into the config."""
    os.makedirs(cfg.exp_dir, exist_ok=True)
    stamp, number = cfg.timestamp, 1
    while True:
        try:
            os.mkdir(cfg.trial_dir)
            return
        except FileExistsError:
            number += 1
            cfg.timestamp = f"{stamp}-{number}"
            cfg.trial_name = f"{cfg.tag}{cfg.timestamp}"
            cfg.trial_dir = os.path.join(cfg.exp_dir, cfg.trial_name)


# ------------------------------------------------------------------------------------------ locks


_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # some network file systems


def _try_lock(file: IO[str]) -> bool:
    """Whether nobody else had the lock. The system gives it back when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
        threestudio.warn(f"{file.name}: no locks on this file system; see that no other run has this folder")
    return True


def _held_by(trial_dir: str) -> str | None:
    """Who trains in the folder now; None for nobody."""
    try:
        with open(os.path.join(trial_dir, LOCK_FILE), "r+", encoding="utf-8") as file:
            return None if _try_lock(file) else file.read().strip()
    except OSError:  # there is none, or it cannot be had: then taking the folder fails, and says why
        return None


def _in_use(trial_dir: str, holder: str) -> UserError:
    who = f" ({holder})" if holder else ""
    return UserError(f"tag: another run is training in {trial_dir}{who}; give this one another tag=...")


@contextmanager
def _locked(trial_dir: str) -> Iterator[None]:
    with open(os.path.join(trial_dir, LOCK_FILE), "a+", encoding="utf-8") as file:
        if not _try_lock(file):
            file.seek(0)
            raise _in_use(trial_dir, file.read().strip())
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
