"""Pictures of the world, encoded once for many steps, and drawn anew as a training goes on."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from threestudio.utils.keyed_random import step_key

from ..teachers.multi_view.cameras import camera_numbers
from ..world.cameras import orbit_c2w, view_direction
from ..world.captions import ObjectSpec, held_out
from ..world.dataset import FOVY_DEG, ViewBank, kind_indices, object_colors, sample_backgrounds, sample_specs
from ..world.render import composite

ENCODE_BATCH, ENCODE_BATCH_CUDA = 64, 1024  # pictures at once
SHORTEST_PERIOD = 400  # steps of one pool
CPU = torch.device("cpu")


def pool_period(period: int, usual_batch: int, batch: int) -> int:
    """For how many steps a pool lasts: `period` at the usual batch, fewer where a batch uses it up sooner."""
    return max(min(period, SHORTEST_PERIOD), period * usual_batch // batch)


@dataclass(frozen=True)
class PictureSets:
    """Sets of V pictures of one object each, on one background a set, their cameras at equal steps of azimuth."""

    images: Tensor  # [S, V, 3, H, W] in [-1, 1]
    specs: list[ObjectSpec]  # S
    elevation: Tensor  # [S, V] degrees
    azimuth: Tensor  # [S, V] degrees
    distance: Tensor  # [S, V] world units


def draw_sets(
    bank: ViewBank,
    count: int,
    generator: torch.Generator,  # on the CPU
    held_out_only: bool = False,
    device: torch.device = CPU,
) -> PictureSets:
    """`count` sets of the bank's views, their pictures on `device`: objects, views, colours, backgrounds all random.

    Pairs of kind and colour that are held out never come, or with `held_out_only` none but those.
    """
    specs: list[ObjectSpec] = []
    while len(specs) < count:
        drawn = sample_specs(count, generator, include_held_out=held_out_only)
        specs += [spec for spec in drawn if held_out(spec.kind, spec.main) == held_out_only]
    specs = specs[:count]
    kind = kind_indices(specs)[:, None]  # [S, 1]
    first = torch.randint(bank.views // bank.turns, (count,), generator=generator) * bank.turns
    view = first[:, None] + torch.arange(bank.turns)  # [S, V]
    backgrounds = sample_backgrounds(count, generator)  # [S, 3]
    pictures = composite(
        (bank.layers[kind, view].to(device).float() / 255).flatten(0, 1),
        object_colors(specs).repeat_interleave(bank.turns, 0).to(device),
        backgrounds.repeat_interleave(bank.turns, 0).to(device),
    )
    images = pictures.unflatten(0, (count, bank.turns)) * 2 - 1
    return PictureSets(images, specs, bank.elevation[kind, view], bank.azimuth[kind, view], bank.distance[kind, view])


def orbit_camera_numbers(elevation: Tensor, azimuth: Tensor, distance: Tensor, encoding: str) -> Tensor:
    """The sixteen numbers of cameras around the world's objects: degrees, degrees, world units, each [B] -> [B, 16]."""
    fovy = torch.full_like(elevation, math.radians(FOVY_DEG))
    return camera_numbers(orbit_c2w(elevation, azimuth, distance), fovy, encoding)


@torch.no_grad()
def encode_pictures(autoencoder: Any, images: Tensor) -> tuple[Tensor, Tensor]:  # [N, 3, H, W] in [-1, 1]
    """Means and deviations of an autoencoder's latents, in the unit that diffusion runs in: [N, C, h, w] each."""
    device, scale = next(autoencoder.parameters()).device, autoencoder.config.scaling_factor
    at_once = ENCODE_BATCH_CUDA if device.type == "cuda" else ENCODE_BATCH
    posteriors = [autoencoder.encode(part.to(device)).latent_dist for part in images.split(at_once)]
    means, deviations = torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])
    return means * scale, deviations * scale


@dataclass
class LatentSets:
    """Encoded sets of pictures."""

    means: Tensor  # [S, V, C, h, w]
    deviations: Tensor  # [S, V, C, h, w]
    cameras: Tensor  # [S, V, 16]
    specs: list[ObjectSpec]  # S
    views: list[list[str]]  # S lists of V view words


class LatentPool:
    """A pool of `sets` encoded sets; every `period` steps it is drawn anew. A function of the step and the seed."""

    def __init__(
        self, bank: ViewBank, autoencoder: Any, camera_encoding: str, sets: int, period: int, seed: int
    ) -> None:
        self.bank, self.autoencoder, self.camera_encoding = bank, autoencoder, camera_encoding
        self.sets, self.period, self.seed = sets, period, seed
        self._turn = -1

    def at(self, step: int) -> LatentSets:
        """The pool of a step."""
        turn = step // self.period
        if turn != self._turn:
            generator = torch.Generator().manual_seed(step_key(self.seed, turn, stream="latent pool") % 2**63)
            device = next(self.autoencoder.parameters()).device
            self._current = self.encode(draw_sets(self.bank, self.sets, generator, device=device))
            self._turn = turn
        return self._current

    def encode(self, sets: PictureSets) -> LatentSets:
        """Encodes sets of pictures."""
        with torch.autocast(next(self.autoencoder.parameters()).device.type, enabled=False):
            means, deviations = encode_pictures(self.autoencoder, sets.images.flatten(0, 1))
        shape = sets.elevation.shape
        orbit = (x.flatten() for x in (sets.elevation, sets.azimuth, sets.distance))
        cameras = orbit_camera_numbers(*orbit, self.camera_encoding).unflatten(0, shape)
        words = [
            [view_direction(e, a) for e, a in zip(*angles)]
            for angles in zip(sets.elevation.tolist(), sets.azimuth.tolist())
        ]
        return LatentSets(
            means.unflatten(0, shape), deviations.unflatten(0, shape), cameras.to(means.device), sets.specs, words
        )
