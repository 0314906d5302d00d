"""How `python -m custom.turboprop.small_models` starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")

WATCH = """
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch comes with", *(os.environ.get(name, "nothing") for name in {names}))

sys.meta_path.insert(0, Watch())
"""


@pytest.mark.parametrize(
    "given, seen",
    [({}, "3000 nothing"), ({"GOMP_SPINCOUNT": "7"}, "7 nothing"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "nothing ACTIVE")],
)
def test_threads_wait_asleep_as_launch_has_it(given, seen, tmp_path):
    """Set before torch is imported, after which it has no effect; what the user has set stays."""
    (tmp_path / "sitecustomize.py").write_text(WATCH.replace("{names}", repr(NAMES)))
    plain = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-m", "custom.turboprop.small_models", "--help"], cwd=ROOT, timeout=120,
        env={**plain, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path), **given}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"torch comes with {seen}\n" in done.stdout
