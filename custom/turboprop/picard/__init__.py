"""Picard iterations: many training steps at once (DreamPropeller, arXiv 2311.17082)."""

from . import dreampropeller, system_mixin
