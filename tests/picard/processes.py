"""Tasks run by several processes over gloo, and what each of them answers."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.picard.runs import (
    COMMON,
    DATA,
    GEOMETRY,
    ROOT,
    SYSTEMS,
    checkpoint,
    small_config,
)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def _work(rank: int, size: int, port: int, task: Callable, arguments: tuple, folder: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    try:
        torch.save(task(*arguments), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def in_processes(size: int, task: Callable, folder: Path, *arguments: Any) -> list:
    """What `task(*arguments)` returns in each of `size` ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    given = (size, free_port(), task, arguments, str(folder))
    mp.start_processes(_work, given, nprocs=size, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def fit_in_processes(
    kind: str, folder: Path, *extra: str, picard: tuple[str, ...], processes: int = 2, steps: int = 20
) -> dict:
    """As `runs.fit`, in several processes: children of this one, which torchrun's variables make one run."""
    arguments = fit_arguments(kind, folder, *extra, picard=picard, steps=steps)
    launch_in_processes(arguments, processes)
    return checkpoint(folder)


def launch_in_processes(arguments: list[str], processes: int = 2) -> None:
    """launch.py with these arguments in so many processes; raises where one does not end with 0.

    A fresh interpreter forks them: what this one has run may have left threads and locks that its forks would wait for.
    """
    command = [sys.executable, "-m", "tests.picard.forked_launch", str(processes), str(free_port()), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def fit_under_torchrun(
    kind: str, folder: Path, *extra: str, picard: tuple[str, ...], processes: int = 2, steps: int = 20
) -> dict:
    arguments = fit_arguments(kind, folder, *extra, picard=picard, steps=steps)
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    command = [*torchrun, f"--master_port={free_port()}", "launch.py", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return checkpoint(folder)


def fit_arguments(kind: str, folder: Path, *extra: str, picard: tuple[str, ...], steps: int) -> list[str]:
    given = [*COMMON, *DATA, *GEOMETRY[kind], f"exp_root_dir={folder}", f"trainer.max_steps={steps}"]
    mixin = [f"system_type={SYSTEMS[kind]}:picard", *(f"system.picard.{key}" for key in picard)]
    return ["--config", small_config(kind, folder), "--train", *given, *mixin, *extra]
