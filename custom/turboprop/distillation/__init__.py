"""Distillation methods as pure functions of a teacher, and the registered guidances."""

from . import guidance, stable_diffusion  # noqa: F401
from .methods import METHODS, Conditions, Distillation, asd_gradient, csd_gradient, sds_gradient, sjc_gradient

__all__ = [
    "METHODS",
    "Conditions",
    "Distillation",
    "asd_gradient",
    "csd_gradient",
    "sds_gradient",
    "sjc_gradient",
]
