"""The tests that need a GPU."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts.shared import Row, Setting, guarded

ROOT = Path(__file__).resolve().parents[2]
# Those of the ops first: they tell most. A dry run only collects and skips some of them.
GROUPS = {
    "ops": ["tests/ops", "tests/gaussians"],
    "one device: surfaces, guidances, training": [
        "tests/cuda/test_surfaces.py", "tests/cuda/test_guidances.py", "tests/cuda/test_training.py",
    ],
    "one device: methods": ["tests/cuda/test_methods.py"],
    "one device: systems": ["tests/cuda/test_systems.py"],
}  # fmt: skip


def counted(setting: Setting, paths: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-m", "gpu and not slow", "-q", "--tb=line", "-p", "no:cacheprovider"]
    command += paths
    left = max(setting.deadline - time.monotonic(), 1)
    start = time.monotonic()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired as late:
        shown = (late.stdout or b"").decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
        progress = "".join(re.findall(r"^[.FEsx]+", shown, re.MULTILINE))
        counts = f"{progress.count('.')} passed, {progress.count('F') + progress.count('E')} failed when time was over"
        return {"result": counts, "seconds": left}
    last = done.stdout.strip().splitlines()[-1:] or done.stderr.strip().splitlines()[-1:] or ["no output"]
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    figures: dict[str, Any] = {"result": last[0].strip("= "), "seconds": time.monotonic() - start}
    return figures | ({"failed": ", ".join(failed[:12])} if failed else {})


def rows(setting: Setting) -> Iterator[Row]:
    for name, paths in GROUPS.items():
        yield guarded(name, setting, lambda paths=paths: counted(setting, paths))
        if setting.tiny:  # one group shows the way
            return
