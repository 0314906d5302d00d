"""What the judge learns from besides clean renders: degraded pictures, hard negatives, and pictures of nothing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..world.captions import ObjectSpec
from ..world.dataset import object_colors, sample_backgrounds
from ..world.objects import COLORS, KINDS


def degrade(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move, scale, blur and tint pictures a little, as imperfect generated objects are: [B, 3, S, S] in [0, 1] -> same.

    Zoom 0.85 to 1.15, shift up to 8% of the width, brightness and each channel within 8%,
    noise up to 0.04; four in ten pictures lose half or three quarters of their resolution.
    """
    count, size = len(images), images.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    zoom, shift = uniform(0.85, 1.15, 1), uniform(-0.16, 0.16, 2)  # in the [-1, 1] units of grid_sample
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = zoom[:, 0]
    affine[:, :, 2] = shift
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    blurred = [
        F.interpolate(F.avg_pool2d(moved, factor), size=(size, size), mode="bilinear", align_corners=False)
        for factor in (2, 4)
    ]
    choice = uniform(0, 1, 1, 1, 1)
    moved = torch.where(choice < 0.25, blurred[0], torch.where(choice < 0.4, blurred[1], moved))
    tint = uniform(0.92, 1.08, 1, 1, 1) * uniform(0.96, 1.04, 3, 1, 1)
    noise = torch.randn(moved.shape, generator=generator) * uniform(0, 0.04, 1, 1, 1)
    return (moved * tint + noise).clamp(0, 1)


def other_choice(current: str, choices: list[str], generator: torch.Generator, excluded: str = "") -> str:
    """A random element of `choices` that is neither `current` nor `excluded`."""
    left = [choice for choice in choices if choice not in (current, excluded)]
    return left[int(torch.randint(len(left), (), generator=generator))]


def recolored(spec: ObjectSpec, generator: torch.Generator) -> ObjectSpec:
    """An object of the spec's kind with its colours swapped (one in three), or with one colour changed."""
    which = int(torch.randint(3, (), generator=generator))
    colors = list(COLORS)
    if which == 0:
        return ObjectSpec(spec.kind, spec.accent, spec.main)
    if which == 1:
        return ObjectSpec(spec.kind, other_choice(spec.main, colors, generator, spec.accent), spec.accent)
    return ObjectSpec(spec.kind, spec.main, other_choice(spec.accent, colors, generator, spec.main))


def hard_negatives(spec: ObjectSpec, generator: torch.Generator) -> list[ObjectSpec]:
    """Objects that are easily taken for `spec`: swapped and changed colours, and another kind in the same colours."""
    return [
        ObjectSpec(spec.kind, spec.accent, spec.main),
        recolored(spec, generator),
        ObjectSpec(other_choice(spec.kind, list(KINDS), generator), spec.main, spec.accent),
    ]


def two_colored_ball(main: Tensor, accent: Tensor, backgrounds: Tensor, size: int, split: Tensor) -> Tensor:
    """A shaded ball, `main` above the height `split` and `accent` below.

    main, accent, backgrounds [B, 3]; split [B] in [-1, 1] (-1: `main` only) -> [B, 3, size, size].
    """
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    radius = 0.55
    inside = (x.square() + y.square() < radius**2).float()
    shade = 0.8 + 0.2 * (0.86 * y + 0.3 * x) / radius
    upper = (y[None] > split[:, None, None] * radius).float()[:, None]
    color = main[:, :, None, None] * upper + accent[:, :, None, None] * (1 - upper)
    return inside * shade * color + (1 - inside) * backgrounds[:, :, None, None]


def pictures_of_nothing(specs: list[ObjectSpec], size: int, generator: torch.Generator) -> Tensor:
    """Pictures that no caption describes [B, 3, size, size]: empty, noise, and balls in the colours of `specs`."""
    count = len(specs)
    backgrounds = sample_backgrounds(count, generator)
    empty = backgrounds[:, :, None, None].expand(-1, -1, size, size)
    coarse = torch.rand(count, 3, size // 8, size // 8, generator=generator)
    noise = torch.where(
        torch.rand(count, 1, 1, 1, generator=generator) < 0.5,
        torch.rand(count, 3, size, size, generator=generator),
        F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False),
    )
    colors = object_colors(specs)
    whole = torch.rand(count, generator=generator) < 0.5
    split = torch.where(whole, -1.0, torch.rand(count, generator=generator) - 0.5)
    ball = two_colored_ball(colors[:, 0], colors[:, 1], backgrounds, size, split)
    choice = torch.rand(count, 1, 1, 1, generator=generator)
    return torch.where(choice < 0.25, empty, torch.where(choice < 0.5, noise, ball))
