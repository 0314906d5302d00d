"""What the tests of all ops share: skips without a backend, and runs in which Warp checks every array access."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

CPU = torch.device("cpu")
DEBUG_MODE = """
import warp as wp
wp.config.mode = "debug"
import torch
{script}
assert wp.config.mode == "debug"
print("inside")
"""


def skips_without(available_backends):
    """A function of backend and device that skips the test where the backend is not available."""

    def need(backend, device=CPU):
        device = torch.device(device)
        if device.type == "cuda" and not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        if backend not in available_backends(device):
            pytest.skip(f"{backend} is not available on {device.type}")

    return need


def stays_inside_its_arrays(script):
    """Runs the script in Warp's debug mode, which is set for a whole process: hence in a new one."""
    done = subprocess.run(
        [sys.executable, "-c", DEBUG_MODE.format(script=script)],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "inside" in done.stdout, done.stderr
    assert "out of bounds" not in done.stdout + done.stderr
