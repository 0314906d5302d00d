"""Diffusion priors behind one contract, and what turns prompts into their conditions."""

from . import prompts  # noqa: F401
from .contract import Condition, Teacher, TextCondition
from .gaussian_mixture import GaussianMixtureTeacher
from .latent_diffusion import LatentDiffusionTeacher

__all__ = ["Condition", "GaussianMixtureTeacher", "LatentDiffusionTeacher", "Teacher", "TextCondition"]
