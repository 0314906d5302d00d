"""3D Gaussians: splatting, densification, system, files."""

from . import background, exporter, files, geometry, material, renderer, system, training
