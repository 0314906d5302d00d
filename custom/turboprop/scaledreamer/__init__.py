"""ScaleDreamer's names and keys (arXiv 2407.02040), so that its config files run here as they are, but for paths."""

from . import background, data, geometries, prompts, renderer, systems
