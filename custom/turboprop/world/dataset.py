"""Captioned renders of the world, made fast enough to train on.

Shapes are traced once, into antialiased layers by role (render.shaded_coverage);
colours and backgrounds are drawn anew for every sample, by a linear combination.
"""

from __future__ import annotations

import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threestudio.utils.staged_files import staged

from .cameras import orbit_c2w, view_direction
from .captions import ObjectSpec, caption, held_out, short_captions
from .objects import COLORS, KINDS
from .render import composite, role_colors, shaded_coverage, surface_view

IMAGE_SIZE = 64  # pixels
FOVY_DEG = 40.0
DISTANCE_RANGE = (2.5, 2.9)  # world units
LOW_ELEVATION_RANGE, OVERHEAD_RANGE, OVERHEAD_SHARE = (-10.0, 60.0), (60.0, 85.0), 0.08


@dataclass
class ViewBank:
    """Layers of many views of each kind."""

    layers: Tensor  # [K kinds, V views, 4, S, S] uint8, see render.shaded_coverage
    elevation: Tensor  # [K, V] degrees
    azimuth: Tensor  # [K, V] degrees in [-180, 180)
    distance: Tensor  # [K, V] world units
    turns: int = 1  # so many views in a row share elevation and distance, at equal steps of azimuth

    @property
    def views(self) -> int:
        return self.layers.shape[1]


@dataclass
class CaptionedImages:
    """A batch of the world."""

    images: Tensor  # [B, 3, S, S] in [-1, 1]
    captions: list[str]
    specs: list[ObjectSpec]


def sample_cameras(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Elevation, azimuth (degrees) and distance of `count` cameras, each [count]."""
    uniform = torch.rand(4, count, generator=generator)
    low, high = LOW_ELEVATION_RANGE
    elevation = low + (high - low) * uniform[0]
    over_low, over_high = OVERHEAD_RANGE
    elevation = torch.where(uniform[1] < OVERHEAD_SHARE, over_low + (over_high - over_low) * uniform[0], elevation)
    azimuth = -180.0 + 360.0 * uniform[2]
    near, far = DISTANCE_RANGE
    return elevation, azimuth, near + (far - near) * uniform[3]


def _trace_kind(index: int, views: int, seed: int, turns: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Layers [V, 4, S, S] uint8, elevation, azimuth and distance [V] of one kind's views."""
    generator = torch.Generator().manual_seed(seed * 1000 + index)
    elevation, azimuth, distance = (x.repeat_interleave(turns) for x in sample_cameras(views // turns, generator))
    azimuth = azimuth + (torch.arange(views) % turns) * (360.0 / turns)
    azimuth = torch.remainder(azimuth + 180.0, 360.0) - 180.0
    c2w = orbit_c2w(elevation, azimuth, distance)
    fovy = torch.full((views,), math.radians(FOVY_DEG))
    kind = list(KINDS.values())[index]
    layers = [
        shaded_coverage(surface_view(kind, c, f, 2 * IMAGE_SIZE, 2 * IMAGE_SIZE), 2)
        for c, f in zip(c2w.split(16), fovy.split(16))
    ]
    return (torch.cat(layers) * 255).round().to(torch.uint8), elevation, azimuth, distance


def _start_worker() -> None:
    torch.set_num_threads(1)


def build_view_bank(views: int, seed: int, progress=lambda name: None, turns: int = 1, workers: int = 1) -> ViewBank:
    """Trace `views` views of every kind, about 80 ms of processor time each, in `workers` processes.

    With `turns` = 4, views come in fours: a quarter turn apart at one elevation and distance. Raises ValueError where
    `views` is not a multiple of `turns`.
    """
    if views < 1 or views % turns:
        raise ValueError(f"views: expected a positive multiple of {turns} (turns), got {views}")
    arguments = (range(len(KINDS)), *([value] * len(KINDS) for value in (views, seed, turns)))
    traced = []
    if workers == 1:
        results = map(_trace_kind, *arguments)
        for name, result in zip(KINDS, results):
            traced.append(result)
            progress(name)
    else:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker) as pool:
            for name, result in zip(KINDS, pool.map(_trace_kind, *arguments)):
                traced.append(result)
                progress(name)
    return ViewBank(*(torch.stack(values) for values in zip(*traced)), turns=turns)


def save_view_bank(bank: ViewBank, path: Path) -> None:
    arrays = {name: getattr(bank, name).numpy() for name in ("layers", "elevation", "azimuth", "distance")}
    with staged(str(path)) as partial:
        np.savez_compressed(partial, turns=bank.turns, **arrays)


def load_view_bank(path: Path) -> ViewBank:
    """Raises ValueError for a file that is no view bank, or one of an older version."""
    with np.load(path) as data:
        missing = [name for name in ("layers", "elevation", "azimuth", "distance", "turns") if name not in data]
        if missing:
            raise ValueError(f"{path}: no view bank of this version, it lacks {missing[0]}")
        tensors = (torch.from_numpy(data[name]) for name in ("layers", "elevation", "azimuth", "distance"))
        return ViewBank(*tensors, turns=int(data["turns"]))


def sample_backgrounds(count: int, generator: torch.Generator) -> Tensor:
    """Plain backgrounds [count, 3] in [0, 1]: mostly greyish, one in six of any colour."""
    grey = 0.3 + 0.5 * torch.rand(count, 1, generator=generator)
    tinted = (grey + 0.08 * (torch.rand(count, 3, generator=generator) - 0.5)).clamp(0, 1)
    vivid = torch.rand(count, 3, generator=generator)
    return torch.where(torch.rand(count, 1, generator=generator) < 1 / 6, vivid, tinted)


def sample_specs(count: int, generator: torch.Generator, include_held_out: bool) -> list[ObjectSpec]:
    """Objects drawn uniformly by kind, then by colours that differ."""
    kinds, colors = list(KINDS), list(COLORS)
    specs: list[ObjectSpec] = []
    while len(specs) < count:
        k, main, other = (
            int(torch.randint(n, (), generator=generator)) for n in (len(kinds), len(colors), len(colors) - 1)
        )
        if not include_held_out and held_out(kinds[k], colors[main]):
            continue
        accent = (main + 1 + other) % len(colors)
        specs.append(ObjectSpec(kinds[k], colors[main], colors[accent]))
    return specs


def sample_captions(specs: list[ObjectSpec], directions: list[str], generator: torch.Generator) -> list[str]:
    """Mostly full captions, some short; seven in ten name the view."""
    texts = []
    for spec, direction in zip(specs, directions):
        length, view = torch.rand(2, generator=generator).tolist()
        no_accent, no_color = short_captions(spec)
        text = caption(spec) if length < 0.8 else no_accent if length < 0.92 else no_color
        texts.append(f"{text}, {direction} view" if view < 0.7 else text)
    return texts


def kind_indices(specs: list[ObjectSpec]) -> Tensor:  # [N]
    """Where the objects' kinds stand in a bank."""
    kinds = list(KINDS)
    return torch.tensor([kinds.index(spec.kind) for spec in specs])


def object_colors(specs: list[ObjectSpec]) -> Tensor:  # [N, 3, 3]
    """The colours of the objects' roles."""
    return torch.stack([role_colors(spec.main, spec.accent) for spec in specs])


def draw_pictures(specs: list[ObjectSpec], bank: ViewBank, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A picture [N, 3, S, S] in [0, 1] of each object from a random view; and the kind [N] and view [N] in the bank."""
    kind = kind_indices(specs)
    view = torch.randint(bank.views, (len(specs),), generator=generator)
    layers = bank.layers[kind, view].float() / 255
    return composite(layers, object_colors(specs), sample_backgrounds(len(specs), generator)), kind, view


def sample_batch(
    bank: ViewBank, count: int, generator: torch.Generator, include_held_out: bool = False
) -> CaptionedImages:
    """Draw `count` captioned pictures: objects, views, colours and backgrounds all random."""
    specs = sample_specs(count, generator, include_held_out)
    images, kind, view = draw_pictures(specs, bank, generator)
    directions = [
        view_direction(float(e), float(a)) for e, a in zip(bank.elevation[kind, view], bank.azimuth[kind, view])
    ]
    return CaptionedImages(images * 2 - 1, sample_captions(specs, directions, generator), specs)
