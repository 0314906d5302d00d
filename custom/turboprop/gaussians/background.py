"""The background that threestudio-3dgs's configs name: the host's learned environment."""

from __future__ import annotations

import threestudio


class GaussianEnvironmentBackground(threestudio.find("neural-environment-map-background")):
    """A small network over the view direction, with the host's keys; colours are drawn for each image by itself."""


# A checkout with threestudio-3dgs brings its own.
if "gaussian-mvdream-neural-environment-map-background" not in threestudio.__modules__:
    threestudio.register("gaussian-mvdream-neural-environment-map-background")(GaussianEnvironmentBackground)
