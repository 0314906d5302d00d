"""Runs that torchrun starts anew when a process of theirs has died: they go on from their own last checkpoint."""

import os
from pathlib import Path
from typing import Optional

import torch.distributed as dist

from threestudio.utils.misc import get_rank


def restart_count() -> int:
    """How often torchrun has started the processes of this run anew."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def checkpoint_to_restart_from(folder: str) -> Optional[str]:
    """The last.ckpt in `folder` that this run has written, if this is a restart.

    At the first start, a last.ckpt that lies there is of an earlier run in the same folder. It is noted by its time, so
    that a restart before this run's first checkpoint does not take it for its own.
    """
    last, note = Path(folder, "last.ckpt"), Path(folder, ".last.ckpt.earlier")
    if restart_count() == 0:
        if get_rank() == 0 and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0:
            if last.is_file():
                note.write_text(time_of(last))
            else:
                note.unlink(missing_ok=True)
        return None
    if not last.is_file() or (note.is_file() and note.read_text() == time_of(last)):
        return None
    return str(last)


def join_restarted_processes(backend: str) -> None:
    """Makes the process group of a run that torchrun has started anew.

    Its store outlives the processes, and with it what the dead ones have left there: the addresses
    at which they could be reached. So each restart has a part of the store to itself.
    """
    if restart_count() == 0 or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    store, rank, size = next(dist.rendezvous("env://"))
    own = dist.PrefixStore(f"restart{restart_count()}", store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=size)


def tell_torchrun(error: Exception) -> None:
    """Leaves an error, while it is handled, where torchrun's report takes it from. Without torchrun: nothing."""
    if dist.is_torchelastic_launched():
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


def time_of(path: Path) -> str:
    return str(path.stat().st_mtime_ns)
