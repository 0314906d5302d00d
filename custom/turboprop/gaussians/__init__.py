"""3D Gaussians: splatting, densification, system, files."""

from . import exporter, geometry, material, renderer, system, training  # noqa: F401
