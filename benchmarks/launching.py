"""Runs of launch.py that a benchmark measures, each a process of its own, and the records that are kept of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reporting import ROOT

from threestudio.utils.staged_files import staged


def launch(arguments: Sequence[str], folder: Path, threads: int) -> tuple[int, float]:
    """Runs launch.py to its end, what it says goes to `folder`/log.txt. Its exit code, and its seconds."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "launch.py", *arguments]
    begin = time.perf_counter()
    with open(folder / "log.txt", "w") as log:
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode
    return code, time.perf_counter() - begin


def keep_record(folder: Path, record: dict[str, Any]) -> None:
    """Writes a finished run's record, whole or not at all."""
    with staged(str(folder / "run.json")) as partial:
        Path(partial).write_text(json.dumps(record, indent=1) + "\n")


def record_in(folder: Path) -> dict[str, Any] | None:
    """The record of a finished run, which is not run again."""
    path = folder / "run.json"
    return json.loads(path.read_text()) if path.is_file() else None
