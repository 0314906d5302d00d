"""3D Gaussians: splatting, densification, system, files."""

from . import exporter, geometry, renderer, system, training  # noqa: F401
