"""What multi-view teachers ask of a training: cameras in sets, and threestudio-mvdream's modules by their names."""

from . import background, data, system
