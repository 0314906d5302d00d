"""From where a picture shows an object, told by how well a teacher denoises it that knows captions and cameras.

Such a teacher predicts the noise in a picture best where it is told the picture's own caption and camera. So a camera
is found as a class is by a diffusion classifier (Li et al. 2023, "Your Diffusion Model is Secretly a Zero-Shot
Classifier", arXiv 2303.16203, section 3): the expected error of the predicted noise is estimated for each candidate,
with the same noise and timesteps for all, and the least one wins. Candidates are far apart first, then near the best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..teachers.contract import Cameras, Teacher
from ..world.cameras import orbit_c2w
from .elevation_estimate import peak

# Degrees: all candidates at first; then those around the best, the outermost of which touch its neighbours.
AZIMUTHS = tuple(float(angle) for angle in range(-180, 180, 15))
ELEVATIONS = tuple(float(angle) for angle in range(-10, 61, 10))  # what teachers are trained with
NEAR_AZIMUTHS = (-15.0, -7.5, 0.0, 7.5, 15.0)
NEAR_ELEVATIONS = (-10.0, -5.0, 0.0, 5.0, 10.0)
# Where a picture's noise still lets a camera show: shares of the diffusion schedule.
TIMESTEP_SHARES = (0.3, 0.5, 0.7, 0.9)
DRAWS = 4  # of noise, at each timestep, of few candidates; of a whole grid one


@dataclass(frozen=True)
class PicturePlace:
    """A picture's camera, as far as it is known. None: to be estimated."""

    elevation: float | None  # degrees
    azimuth: float | None  # degrees
    distance: float  # world units
    fovy_deg: float  # degrees


@dataclass(frozen=True)
class PlaceEstimate:
    """The elevation and azimuth that a picture was taken from, and the errors of the predicted noise.

    A body of revolution has the same error at each azimuth, and no front.
    """

    elevation: float  # degrees
    azimuth: float  # degrees, in [-180, 180)
    elevations: tuple[float, ...]  # degrees, of the candidates at first
    azimuths: tuple[float, ...]  # degrees
    errors: tuple[tuple[float, ...], ...]  # by elevation, then azimuth: mean squared, of noise of variance 1

    @property
    def least_error(self) -> float:
        return min(map(min, self.errors))

    @property
    def mean_error(self) -> float:
        return sum(map(sum, self.errors)) / (len(self.elevations) * len(self.azimuths))


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture as a teacher sees it, with its caption."""

    latents: Tensor  # [1, C, h, w]
    embeddings: Tensor  # [1, N, D]


def picture_for(teacher: Teacher, rgba: Tensor) -> Tensor:  # [S, S, 4], straight alpha
    """A picture on white, of the teacher's size: [3, S, S] in [0, 1]."""
    on_white = (rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]).permute(2, 0, 1)[None]
    size = (teacher.image_size, teacher.image_size)
    return F.interpolate(on_white, size, mode="bilinear", antialias=True)[0].clamp(0, 1)


@torch.no_grad()
def captioned_picture(
    teacher: Teacher,
    picture: Tensor,  # [3, S, S] in [0, 1], of the teacher's size
    embeddings: Tensor,  # [1, N, D], of its caption
) -> CaptionedPicture:
    images = picture[None].to(teacher.device) * 2 - 1
    no_noise = images.new_zeros(1, teacher.latent_channels, teacher.latent_size, teacher.latent_size)
    return CaptionedPicture(teacher.encode(images, no_noise), embeddings.to(teacher.device))  # the posterior's mean


def cameras_at(elevation: Tensor, azimuth: Tensor, place: PicturePlace) -> Cameras:  # [M], [M] degrees
    distance = torch.full_like(azimuth, place.distance)
    fovy = torch.full_like(azimuth, math.radians(place.fovy_deg))
    return Cameras(elevation, azimuth, distance, orbit_c2w(elevation, azimuth, distance), fovy)


@torch.no_grad()
def denoising_errors(
    teacher: Teacher, picture: CaptionedPicture, cameras: Cameras, draws: int = DRAWS, seed: int = 0
) -> Tensor:
    """The mean squared error of the predicted noise for each of M cameras: [M]. Draws from no global generator."""
    latents, count = picture.latents, len(cameras.azimuth)
    condition = teacher.condition(picture.embeddings.expand(count, -1, -1), cameras, 1)
    generator = torch.Generator().manual_seed(seed)
    errors = torch.zeros(count, device=latents.device)
    for share in TIMESTEP_SHARES:
        timesteps = torch.full((count,), int(share * teacher.num_timesteps), device=latents.device)
        for _ in range(draws):
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            noisy = teacher.add_noise(latents, noise, timesteps[:1]).expand(count, -1, -1, -1)
            predicted = teacher.predict_noise(noisy, timesteps, condition)
            errors += (predicted - noise).square().mean(dim=(1, 2, 3)).float()
    return errors / (len(TIMESTEP_SHARES) * draws)


def grid_errors(
    teacher: Teacher,
    picture: CaptionedPicture,
    elevations: tuple[float, ...],  # degrees
    azimuths: tuple[float, ...],  # degrees
    place: PicturePlace,
    draws: int,
) -> Tensor:  # [elevations, azimuths]
    angles = torch.cartesian_prod(torch.tensor(elevations), torch.tensor(azimuths)).to(teacher.device)
    errors = denoising_errors(teacher, picture, cameras_at(angles[:, 0], angles[:, 1], place), draws)
    return errors.unflatten(0, (len(elevations), len(azimuths))).cpu()


def first_errors(
    teacher: Teacher, picture: CaptionedPicture, place: PicturePlace
) -> tuple[Tensor, tuple[float, ...], tuple[float, ...]]:
    """Errors [elevations, azimuths] at candidates that are far apart, and these candidates, degrees."""
    elevations = ELEVATIONS if place.elevation is None else (place.elevation,)
    azimuths = AZIMUTHS if place.azimuth is None else (place.azimuth,)
    draws = DRAWS if min(len(elevations), len(azimuths)) == 1 else 1
    return grid_errors(teacher, picture, elevations, azimuths, place, draws), elevations, azimuths


def caption_errors(
    teacher: Teacher,
    picture: Tensor,  # [3, S, S] in [0, 1], of the teacher's size
    embeddings: Tensor,  # [K, N, D], of captions
    place: PicturePlace,
) -> list[float]:
    """How well each of K captions explains a picture: the least error over places that are far apart."""
    pictures = (captioned_picture(teacher, picture, row[None]) for row in embeddings)
    return [float(first_errors(teacher, seen, place)[0].min()) for seen in pictures]


def estimate_place(teacher: Teacher, picture: CaptionedPicture, place: PicturePlace) -> PlaceEstimate:
    """What is not known of a picture's place: where the teacher, which is told the camera, explains it best."""
    errors, elevations, azimuths = first_errors(teacher, picture, place)
    row, column = divmod(int(errors.argmin()), len(azimuths))
    near_elevations = _around(elevations[row], NEAR_ELEVATIONS, place.elevation)
    near_azimuths = _around(azimuths[column], NEAR_AZIMUTHS, place.azimuth)
    near = grid_errors(teacher, picture, near_elevations, near_azimuths, place, DRAWS)
    row, column = divmod(int(near.argmin()), len(near_azimuths))
    azimuth = peak(near_azimuths, tuple((-near[row]).tolist()))
    return PlaceEstimate(
        peak(near_elevations, tuple((-near[:, column]).tolist())),
        (azimuth + 180.0) % 360.0 - 180.0,
        elevations,
        azimuths,
        tuple(tuple(line) for line in errors.tolist()),
    )


def _around(best: float, offsets: tuple[float, ...], known: float | None) -> tuple[float, ...]:
    return (known,) if known is not None else tuple(best + offset for offset in offsets)
