"""Light that comes from all around: panoramas, blurred by what a surface reflects of them, and looked up.

A panorama [H, W, 3] shows the sphere of directions as seen from its middle, +z at its top row. Its middle column is +x,
and azimuth falls to the right, towards -y. Values are radiance, without a unit. Everything is a pure function of
tensors on any device.

What a rough surface mirrors is the split-sum approximation of Karis (Real Shading in Unreal Engine 4, SIGGRAPH 2013
course): the light is blurred for a view along the normal, and multiplied by the reflectance under a light of 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 8  # of roughness, evenly from 0 to 1
BLURRED = (128, 256)  # rows and columns of blurred panoramas: 1.4 degrees a pixel
# Nearer to a pole than this (sine of the angle) a panorama's azimuth says next to nothing, and its slope is steep.
_POLE = 1.0e-2


def panorama_directions(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Unit directions of a panorama's pixels [H, W, 3]."""
    polar = (torch.arange(height, device=device, dtype=torch.float64) + 0.5) / height * math.pi
    azimuth = (0.5 - (torch.arange(width, device=device, dtype=torch.float64) + 0.5) / width) * 2 * math.pi
    polar, azimuth = torch.meshgrid(polar, azimuth, indexing="ij")
    flat = polar.sin()
    return torch.stack([flat * azimuth.cos(), flat * azimuth.sin(), polar.cos()], -1).float()


def solid_angles(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """What part of the sphere each pixel of a panorama covers [H, W], steradians; 4 pi in sum."""
    edges = torch.linspace(0, math.pi, height + 1, device=device, dtype=torch.float64).cos()
    rows = (edges[:-1] - edges[1:]) * (2 * math.pi / width)
    return rows[:, None].expand(height, width).float()


def studio_panorama(height: int = 128, width: int = 256) -> Tensor:
    """A grey room with a key light, a fill light and a rim light [H, W, 3]; a horizontal white surface that looks up
    reflects 0.5."""
    directions = panorama_directions(height, width)
    light = 0.16 + 0.10 * directions[..., 2:].clamp(min=-0.5).expand(-1, -1, 3)
    for elevation, azimuth, sharpness, color in (
        (40.0, 45.0, 12.0, (2.6, 2.5, 2.3)),  # key: in front, warm
        (25.0, -50.0, 6.0, (0.5, 0.55, 0.65)),  # fill: the other side, cold
        (30.0, 170.0, 30.0, (2.0, 2.0, 2.0)),  # rim: behind, small
    ):
        e, a = math.radians(elevation), math.radians(azimuth)
        axis = torch.tensor([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
        lobe = torch.exp(sharpness * ((directions * axis).sum(-1, keepdim=True) - 1.0))
        light = light + lobe * torch.tensor(color)
    up = (light * (directions[..., 2:].clamp(min=0.0) * solid_angles(height, width)[..., None])).sum((0, 1)) / math.pi
    return light * (0.5 / up.mean())


def resized_panorama(panorama: Tensor, height: int, width: int) -> Tensor:  # [H, W, 3] -> [height, width, 3]
    """The mean over each new pixel's area; a panorama that is smaller already is interpolated."""
    smaller = panorama.shape[0] >= height and panorama.shape[1] >= width
    image = panorama.permute(2, 0, 1)[None]
    mode = {"mode": "area"} if smaller else {"mode": "bilinear", "align_corners": False}
    return F.interpolate(image, (height, width), **mode)[0].permute(1, 2, 0)


def reflected_light(panorama: Tensor) -> Tensor:  # [H, W, 3] -> [LEVELS, *BLURRED, 3]
    """What surfaces of roughness 0, 1/7, ... 1 mirror of the light, by the direction that they mirror.

    With n = v = r the weight of light from l is D(h) (n . l), h halfway between l and n, D the distribution of
    Trowbridge and Reitz (GGX) with alpha = roughness^2 (Karis 2013, after Burley 2012). Its own integral divides it.
    """
    source = resized_panorama(panorama, *BLURRED)
    levels = [source]
    for index in range(1, LEVELS):
        alpha_squared = (index / (LEVELS - 1)) ** 4

        def lobe(cosine: Tensor, alpha_squared: float = alpha_squared) -> Tensor:
            halfway_squared = (1.0 + cosine) / 2.0  # (n . h)^2
            spread = halfway_squared * (alpha_squared - 1.0) + 1.0
            return cosine.clamp(min=0.0) / spread.square()

        levels.append(_blurred(source, lobe))
    return torch.stack(levels)


def diffused_light(panorama: Tensor) -> Tensor:  # [H, W, 3] -> [*BLURRED, 3]
    """What a white diffuse surface reflects of the light, by its normal: irradiance over pi."""
    return _blurred(resized_panorama(panorama, *BLURRED), lambda cosine: cosine.clamp(min=0.0))


def _blurred(source: Tensor, lobe: Callable[[Tensor], Tensor]) -> Tensor:  # [H, W, 3] -> [H, W, 3]
    """The mean of the light from all directions, weighted by `lobe` of the cosine to each pixel's direction.

    Turned around z the weights of a row's pixels are the same, so a row is a circular correlation along the azimuth.
    """
    height, width, _ = source.shape
    directions = panorama_directions(height, width, source.device).double()
    weights, light = solid_angles(height, width, source.device).double(), torch.fft.rfft(source.double(), dim=1)
    rows = []
    for row in range(height):
        lobes = lobe((directions @ directions[row, 0]).clamp(-1.0, 1.0)) * weights  # [H, W]
        seen = (torch.fft.rfft(lobes, dim=1).conj()[..., None] * light).sum(0)
        rows.append(torch.fft.irfft(seen, n=width, dim=0) / lobes.sum())
    return torch.stack(rows).to(source)


def light_towards(levels: Tensor, directions: Tensor, roughness: Tensor | None = None) -> Tensor:
    """Light from panoramas, between their pixels and levels.

    Args:
        levels: [K, H, W, 3] of roughness evenly from 0 to 1, or [1, H, W, 3].
        directions: [N, 3], of length 1.
        roughness: [N], in [0, 1]; None where there is one level.
    Returns:
        [N, 3], with gradients to the directions and the roughness.
    """
    count, height, width, _ = levels.shape
    x, y, z = directions.unbind(-1)
    flat = (x * x + y * y + 1.0e-12).sqrt()
    away = flat > _POLE
    azimuth = torch.atan2(torch.where(away, y, y.detach()), torch.where(away, x, x.detach() + 1.0e-12))
    u, v = 0.5 - azimuth / (2 * math.pi), torch.atan2(flat, z) / math.pi
    volume = torch.cat([levels[:, :, -1:], levels, levels[:, :, :1]], 2).permute(3, 0, 1, 2)[
        None
    ]  # [1, 3, K, H, W + 2]
    column = (u * width + 1.0) / (width + 2)
    level = torch.zeros_like(u) if roughness is None else roughness.clamp(0.0, 1.0)
    depth = (level * (count - 1) + 0.5) / count
    at = torch.stack([column, v, depth], -1) * 2.0 - 1.0
    found = F.grid_sample(volume, at.view(1, 1, 1, -1, 3).to(volume), padding_mode="border", align_corners=False)
    return found.view(3, -1).T


def reflectance_table(size: int = 64, samples: int = 1024) -> Tensor:
    """Scale A and bias B on the reflectance F0 at a right angle, under a light of 1: [size, size, 2].

    Rows are the roughness, columns the cosine between normal and view, both at the middle of the pixels of [0, 1]. The
    reflectance is F0 A + B, with Schlick's Fresnel term, GGX (Walter et al. 2007, equations 33 and 34) and directions
    drawn from it along a Hammersley sequence.
    """
    middle = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    alpha, cosine = (middle**2)[:, None, None], middle[None, :, None]
    first, second = _hammersley(samples)
    halfway = ((1 - first) / (1 + (alpha**2 - 1) * first)).sqrt()  # [size, 1, S]: n . h
    sideways = (1 - halfway**2).clamp(min=0).sqrt() * torch.cos(2 * math.pi * second)
    view_halfway = ((1 - cosine**2).sqrt() * sideways + cosine * halfway).clamp(min=0)
    light = 2 * view_halfway * halfway - cosine  # n . l
    shadowing = _smith(cosine, alpha) * _smith(light.clamp(min=1e-9), alpha)
    weight = torch.where(light > 0, shadowing * view_halfway / (halfway * cosine).clamp(min=1e-9), 0.0)
    grazing = (1 - view_halfway) ** 5
    return torch.stack([((1 - grazing) * weight).mean(-1), (grazing * weight).mean(-1)], -1).float()


def _smith(cosine: Tensor, alpha: Tensor) -> Tensor:
    """How much of the surface is not in the shadow of itself, from one direction."""
    return 2 * cosine / (cosine + (alpha**2 + (1 - alpha**2) * cosine**2).sqrt())


def _hammersley(count: int) -> tuple[Tensor, Tensor]:
    """An even spread of `count` points over the unit square: each [count]."""
    index = torch.arange(count)
    reversed_bits, scale = torch.zeros(count, dtype=torch.float64), 0.5
    rest = index.clone()
    while int(rest.max()) > 0:
        reversed_bits += scale * (rest % 2)
        rest, scale = rest // 2, scale / 2
    return (index + 0.5) / count, reversed_bits


def reflectance(table: Tensor, cosine: Tensor, roughness: Tensor) -> tuple[Tensor, Tensor]:
    """A and B of `reflectance_table` at [N] cosines and roughnesses in [0, 1]: each [N]."""
    at = torch.stack([cosine, roughness], -1) * 2.0 - 1.0
    image = table.permute(2, 0, 1)[None]
    found = F.grid_sample(image, at.view(1, 1, -1, 2).to(image), padding_mode="border", align_corners=False)
    scale, bias = found.view(2, -1).unbind(0)
    return scale, bias
