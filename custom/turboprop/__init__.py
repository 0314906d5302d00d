"""Turboprop: score distillation for threestudio. Importing this package registers its modules."""

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
