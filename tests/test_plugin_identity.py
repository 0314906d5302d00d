"""`turboprop`, as the launcher loads the plugin, and `custom.turboprop`, as Python finds it, are one."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LOADER_FIRST = """
from threestudio.utils.extensions import load_extensions
load_extensions()
import turboprop, custom.turboprop
"""
PYTHON_FIRST = """
import custom.turboprop
import threestudio
threestudio.find("turboprop-asd-guidance")
from threestudio.utils.extensions import load_extensions
assert load_extensions("custom") in (["turboprop"], [])
import turboprop
"""
SAME = """
import sys, threestudio
import custom.turboprop.distillation.methods as one, turboprop.distillation.methods as two
from turboprop.distillation import METHODS
from custom.turboprop.distillation import METHODS as AGAIN
import turboprop.world.captions as three  # loaded under this name first
import custom.turboprop.world.captions as four
assert one is two and three is four and METHODS is AGAIN and custom.turboprop is turboprop
assert one.__spec__.name == one.__name__
guidance = threestudio.find("turboprop-asd-guidance")
assert guidance.__module__.endswith("turboprop.distillation.guidance") and sys.modules[guidance.__module__]
"""


@pytest.mark.parametrize("start", [LOADER_FIRST, PYTHON_FIRST], ids=["loader first", "python first"])
def test_one_module_under_two_names(start):
    done = subprocess.run([sys.executable, "-c", start + SAME], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
