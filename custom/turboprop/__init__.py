"""Turboprop: score distillation for threestudio. Importing this package registers its modules."""

import os
import sys

# The commands of this package (`python -m custom.turboprop.small_models` trains) begin here: Python's name for them is
# "-m" until it has found the module. Threads wait as launch.py's do (`wait_asleep` there says why), which has to be
# said before torch is imported. What the user has set stays.
if sys.argv[:1] == ["-m"] and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
    os.environ["GOMP_SPINCOUNT"] = "3000"

import threestudio
from threestudio.utils.config import marks_schedules

if tuple(int(part) for part in threestudio.__version__.split(".")[:2]) < (0, 2):
    raise ImportError(f"turboprop needs threestudio 0.2 or newer, this is {threestudio.__version__}")

marks_schedules(__name__)

from . import (  # noqa: E402
    amortized,
    distillation,
    evaluation,
    fitting,
    gaussians,
    multi_view,
    novelview,
    picard,
    scaledreamer,
    teachers,
)
