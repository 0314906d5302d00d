"""Figures of generated objects: by the judge, against ground truth, and the mixin that measures any system."""

from . import system_mixin
