"""3D Gaussians: splatting, densification, system, files."""
