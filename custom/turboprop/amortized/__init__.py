"""Prompt-amortized generators, their data, renderer and system."""

from . import background, data, exporter, geometry, renderer, system
