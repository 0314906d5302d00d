"""A disk that is full or does not take a run's files, told in one line, from whatever its failure has become."""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from threestudio.utils.misc import load_checkpoint
from threestudio.utils.trial_folder import last_checkpoint

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # EFBIG: beyond the limit of `ulimit -f`
# What else a trial's folder answers: no rights there, a disk for reading only, a file where a folder should be.
_REFUSED = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EIO,
)  # fmt: skip
_NOTHING_FREE = 64 * 1024  # bytes; less than any file of a run needs


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it came from or that came before it; each once, the earliest last."""
    waiting, seen = [error], set()
    while waiting:
        current = waiting.pop()
        if id(current) not in seen:
            seen.add(id(current))
            yield current
            waiting += [e for e in (current.__context__, current.__cause__) if e is not None]


def full_disk_error(error: BaseException, folder: str) -> OSError | None:
    """The OSError behind `error` that says that the disk, or the user's share of it, is full, or that `folder`, the
    run's own, does not take a file; None if there is none.

    A program that writes for this one (ffmpeg's videos) tells no reason: then the disk of `folder` itself is asked.
    """
    full = [e for e in _causes(error) if isinstance(e, OSError) and e.errno in _FULL]
    if full:
        named = [e for e in full if e.filename is not None]
        return (named or full)[-1]
    refused = [e for e in _causes(error) if isinstance(e, OSError) and _is_refused(e, folder)]
    if refused:
        return refused[-1]
    if isinstance(error, (OSError, RuntimeError)) and os.path.isdir(folder):
        if shutil.disk_usage(folder).free < _NOTHING_FREE:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder)
    return None


def _is_refused(error: OSError, folder: str) -> bool:
    """Whether a path in `folder` cannot be written, or the whole folder is gone."""
    if not folder or not isinstance(error.filename, str):
        return False
    top, path = Path(folder).absolute(), Path(error.filename).absolute()
    if top != path and top not in path.parents:
        return False
    return error.errno in _REFUSED or error.errno == errno.ENOENT and not top.is_dir()


def _whole_checkpoint(trial_dir: str) -> str:
    path = last_checkpoint(trial_dir)
    if path is None:
        return f"no checkpoint is in {Path(trial_dir, 'ckpts')}"
    try:
        return f"{path} is whole, of step {load_checkpoint(str(path))['global_step']}"
    except (OSError, ValueError, KeyError) as error:
        return f"{path} is the newest checkpoint, and cannot be read ({error})"


def full_disk_line(error: OSError, trial_dir: str, step: int) -> str:
    """Path, step, and the checkpoint that a run can go on from."""
    path = error.filename if error.filename is not None else trial_dir
    return f"{error.strerror}: {path}, at step {step}; {_whole_checkpoint(trial_dir)}"
