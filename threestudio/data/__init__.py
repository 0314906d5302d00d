"""Data modules: what a step looks from, and at."""

from threestudio.data import image, uncond
