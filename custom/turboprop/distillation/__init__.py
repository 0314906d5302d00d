"""Distillation methods as pure functions of a teacher, and the registered guidances."""

from . import guidance, mvdream, stable_diffusion, unified, variational
from .inversion import ddim_inversion, sdi_gradient
from .methods import (
    METHODS,
    Conditions,
    Distillation,
    Negatives,
    Query,
    asd_gradient,
    csd_gradient,
    normalized_csd_gradient,
    sds_gradient,
    sjc_gradient,
    vsd_gradient,
)
from .reconstruction import reconstruction_gradient
from .step import distill

__all__ = [
    "METHODS",
    "Conditions",
    "Distillation",
    "Negatives",
    "Query",
    "asd_gradient",
    "csd_gradient",
    "ddim_inversion",
    "distill",
    "normalized_csd_gradient",
    "reconstruction_gradient",
    "sdi_gradient",
    "sds_gradient",
    "sjc_gradient",
    "vsd_gradient",
]
