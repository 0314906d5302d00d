"""Distillation methods as pure functions of a teacher, and the registered guidances."""

from . import guidance, stable_diffusion, variational  # noqa: F401
from .inversion import ddim_inversion, sdi_gradient
from .methods import (
    METHODS,
    Conditions,
    Distillation,
    asd_gradient,
    csd_gradient,
    sds_gradient,
    sjc_gradient,
    vsd_gradient,
)

__all__ = [
    "METHODS",
    "Conditions",
    "Distillation",
    "asd_gradient",
    "csd_gradient",
    "ddim_inversion",
    "sdi_gradient",
    "sds_gradient",
    "sjc_gradient",
    "vsd_gradient",
]
