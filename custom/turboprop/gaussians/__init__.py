"""3D Gaussians: splatting, densification, system, files."""

from . import background, exporter, files, geometry, image_system, material, renderer, system, training
