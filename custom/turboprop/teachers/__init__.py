"""Diffusion priors behind one contract, and what turns prompts into their conditions."""

from . import prompts
from .contract import Condition, Teacher, TextCondition
from .gaussian_mixture import GaussianMixtureTeacher
from .latent_diffusion import LatentDiffusionTeacher
from .low_rank import CameraCondition, LowRankTeacher
from .pixel_diffusion import PixelDiffusionTeacher
from .pretrained import load_teacher

__all__ = [
    "CameraCondition",
    "Condition",
    "GaussianMixtureTeacher",
    "LatentDiffusionTeacher",
    "LowRankTeacher",
    "PixelDiffusionTeacher",
    "Teacher",
    "TextCondition",
    "load_teacher",
]
