"""Prompt-amortized generators, their data, renderer and system."""

from . import (
    background,
    conv_geometry,
    data,
    exporter,
    hyper_geometry,
    renderer,
    system,
    text_background,
    triplane_geometry,
)
