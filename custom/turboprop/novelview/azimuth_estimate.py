"""Which side of an object a picture shows, told by how well a teacher denoises it that knows captions and cameras.

Such a teacher predicts the noise in a picture best where it is told the picture's own caption and camera. So a camera
is found as a class is by a diffusion classifier (Li et al. 2023, "Your Diffusion Model is Secretly a Zero-Shot
Classifier", arXiv 2303.16203, section 3): the expected error of the predicted noise is estimated for each candidate,
with the same noise and timesteps for all, and the least one wins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..teachers.contract import Cameras, Teacher
from ..world.cameras import orbit_c2w
from .elevation_estimate import peak

STEP = 15.0  # degrees between candidates; the least error is refined between them
# Where a picture's noise still lets a camera show: shares of the diffusion schedule, and draws of noise at each.
TIMESTEP_SHARES = (0.3, 0.5, 0.7, 0.9)
DRAWS = 4


@dataclass(frozen=True)
class PicturePlace:
    """What is known of a picture's camera besides its azimuth."""

    elevation: float  # degrees
    distance: float  # world units
    fovy_deg: float  # degrees


@dataclass(frozen=True)
class AzimuthEstimate:
    """The azimuth that a picture was taken from, and how large the error of the predicted noise is at each candidate.

    A body of revolution has the same error everywhere, and no front.
    """

    azimuth: float  # degrees, in [-180, 180)
    candidates: tuple[float, ...]  # degrees, evenly spaced around the object
    errors: tuple[float, ...]  # mean squared, of noise of variance 1


def cameras_around(place: PicturePlace, azimuths: Tensor) -> Cameras:  # [N] degrees
    elevation, distance = (torch.full_like(azimuths, value) for value in (place.elevation, place.distance))
    fovy = torch.full_like(azimuths, math.radians(place.fovy_deg))
    return Cameras(elevation, azimuths, distance, orbit_c2w(elevation, azimuths, distance), fovy)


@torch.no_grad()
def denoising_errors(
    teacher: Teacher,
    latents: Tensor,  # [1, C, h, w], of the picture
    embeddings: Tensor,  # [1, N, D], of its caption
    cameras: Cameras,  # of M candidates
    seed: int = 0,
) -> Tensor:
    """The mean squared error of the predicted noise for each candidate: [M]. Draws from no global generator."""
    count = len(cameras.azimuth)
    condition = teacher.condition(embeddings.expand(count, -1, -1), cameras, 1)
    generator = torch.Generator().manual_seed(seed)
    errors = torch.zeros(count, device=latents.device)
    for share in TIMESTEP_SHARES:
        timesteps = torch.full((count,), int(share * teacher.num_timesteps), device=latents.device)
        for _ in range(DRAWS):
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            noisy = teacher.add_noise(latents, noise, timesteps[:1]).expand(count, -1, -1, -1)
            predicted = teacher.predict_noise(noisy, timesteps, condition)
            errors += (predicted - noise).square().mean(dim=(1, 2, 3)).float()
    return errors / (len(TIMESTEP_SHARES) * DRAWS)


@torch.no_grad()
def estimate_azimuth(
    teacher: Teacher,  # is told the camera
    picture: Tensor,  # [3, S, S] in [0, 1], of the teacher's size
    embeddings: Tensor,  # [1, N, D], of the picture's caption
    place: PicturePlace,
) -> AzimuthEstimate:
    """The azimuth at which the teacher explains a picture best, by a parabola through the least error's neighbours."""
    images = picture[None].to(teacher.device) * 2 - 1
    side = teacher.latent_size
    latents = teacher.encode(images, images.new_zeros(1, teacher.latent_channels, side, side))  # the posterior's mean
    azimuths = torch.arange(-180.0, 180.0, STEP, device=teacher.device)
    found = denoising_errors(teacher, latents, embeddings.to(teacher.device), cameras_around(place, azimuths))
    candidates, errors = tuple(azimuths.tolist()), tuple(found.tolist())
    best, count = errors.index(min(errors)), len(errors)
    near = tuple(-errors[(best + offset) % count] for offset in (-1, 0, 1))
    here = peak(tuple(candidates[best] + offset * STEP for offset in (-1, 0, 1)), near)
    return AzimuthEstimate((here + 180.0) % 360.0 - 180.0, candidates, errors)
