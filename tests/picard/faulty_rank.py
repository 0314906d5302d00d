"""One rank of several that exchange in rounds, of which one has a fault. As a program: a rank that torchrun starts."""

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

FAULT_STEP = 16
DEAD_AFTER = 2.0  # seconds; far less than a run would have


def all_reduce_in_rounds(folder: Path, fault: str, victim: int, watch: Any = None) -> None:
    """Rounds of an exchange of the default process group, in which `victim` has its fault at FAULT_STEP."""
    for step in range(FAULT_STEP + 5):
        if watch is not None:
            watch.step = step
        time.sleep(0.05)
        if step == FAULT_STEP and dist.get_rank() == victim:
            (folder / "fault").touch()
            happen(fault)
        dist.all_reduce(torch.ones(1))


def happen(fault: str) -> None:
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "sleep":
        time.sleep(2.5 * DEAD_AFTER)
    elif fault == "error":
        raise ValueError("bad weather")


@record
def main(folder: str, fault: str, victim: str) -> None:
    torch.set_num_threads(1)
    (Path(folder) / f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    all_reduce_in_rounds(Path(folder), fault, int(victim))


if __name__ == "__main__":
    main(*sys.argv[1:])
