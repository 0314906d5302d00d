"""Turboprop: score distillation for threestudio. Importing this package registers its modules."""

import threestudio

if tuple(int(part) for part in threestudio.__version__.split(".")[:2]) < (0, 2):
    raise ImportError(f"turboprop needs threestudio 0.2 or newer, this is {threestudio.__version__}")

from . import amortized, distillation, evaluation, fitting, gaussians, multi_view, picard, teachers  # noqa: E402, F401
