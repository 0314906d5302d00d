"""From which elevation a picture was taken, told by views whose cameras are known only relative to the picture's.

A model such as zero-1-to-3 draws an object from a camera that is raised and turned by given angles; it does not say how
high the picture's own camera is. One-2-3-45 (Liu et al. 2023, arXiv 2306.16928) finds that elevation by matching points
between drawn views. Here it is found from silhouettes, which small and plain pictures have too. A candidate elevation
places all cameras in the world, and the silhouettes then bound a visual hull (Laurentini 1994, "The Visual Hull Concept
for Silhouette-Based Image Understanding"). At the true elevation the hull covers every silhouette that bounds it; at a
wrong one silhouettes contradict each other, and the hull covers less.

Views that are only turned tell nothing about a body of revolution: all its silhouettes are equal, at any elevation.
Views that are raised and turned do: how its outline changes with the elevation depends on the elevation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from threestudio.data.cameras import camera_rays, look_at_origin, spherical_to_cartesian, unit_focal_directions

CANDIDATES = tuple(float(angle) for angle in range(-10, 61, 5))  # degrees; what novel-view models are trained with
FEWEST_VIEWS = 4
CELLS = 32  # of the hull's grid, along a side
RAY_SAMPLES = 48  # points of a ray through the grid


@dataclass(frozen=True)
class RelativeViews:
    """Silhouettes of V views of one object; one of them is the picture's, raised and turned by 0."""

    silhouettes: Tensor  # [V, S, S] in [0, 1]
    raised: Tensor  # [V] degrees of elevation above the picture's
    turned: Tensor  # [V] degrees of azimuth from the picture's
    distance: float  # of all cameras from the object's middle, world units
    fovy: float  # radians

    def __post_init__(self) -> None:
        shape, count = self.silhouettes.shape, len(self.silhouettes)
        if len(shape) != 3 or shape[1] != shape[2] or count < FEWEST_VIEWS:
            raise ValueError(f"silhouettes: expected [V, S, S] of at least {FEWEST_VIEWS} views, got {list(shape)}")
        if self.raised.shape != (count,) or self.turned.shape != (count,):
            given = f"{list(self.raised.shape)} and {list(self.turned.shape)}"
            raise ValueError(f"raised, turned: expected an angle for each of {count} views, got {given}")

    @property
    def half_side(self) -> float:
        """Half the side of the cube around the origin that holds the object, world units: what the cameras see."""
        return self.distance * math.tan(self.fovy / 2)


@dataclass(frozen=True)
class ElevationEstimate:
    """The elevation at which views agree best, and how well they agree at each candidate."""

    elevation: float  # degrees
    candidates: tuple[float, ...]  # degrees, evenly spaced
    scores: tuple[float, ...]  # of each candidate, in [0, 1]: mean overlap of silhouettes with the hull's

    @property
    def at_an_end(self) -> bool:
        """Whether the best candidate is the first or the last one, so that the true elevation may lie beyond it."""
        return self.scores.index(max(self.scores)) in (0, len(self.scores) - 1)

    @property
    def contrast(self) -> float:
        """How much better the best candidate is than the worst, in [0, 1]."""
        return max(self.scores) - min(self.scores)


@torch.no_grad()
def estimate_elevation(views: RelativeViews, candidates: tuple[float, ...] = CANDIDATES) -> ElevationEstimate:
    """The elevation from which the picture was taken. Candidates are evenly spaced, in degrees, at least three.

    Raises ValueError for fewer candidates.
    """
    if len(candidates) < 3:
        raise ValueError(f"candidates: expected at least 3 elevations, got {len(candidates)}")
    scores = tuple(float(overlaps(views, candidate)[0].mean()) for candidate in candidates)
    return ElevationEstimate(peak(candidates, scores), tuple(candidates), scores)


def peak(places: tuple[float, ...], values: tuple[float, ...]) -> float:
    """Where a curve given at evenly spaced places is largest: the vertex of the parabola through its best three.

    At an end of the curve the end itself.
    """
    best = values.index(max(values))
    if best in (0, len(values) - 1):
        return places[best]
    before, here, after = values[best - 1 : best + 2]
    bend = before - 2 * here + after  # at most 0, since `here` is the largest
    shift = 0.5 * (before - after) / bend if bend < 0 else 0.0  # within half a step
    return places[best] + shift * (places[best + 1] - places[best])


def overlaps(views: RelativeViews, elevation: float) -> tuple[Tensor, Tensor]:
    """How well a hull explains each silhouette, if the picture was taken from `elevation` (degrees).

    Returns the intersection over the union of each silhouette and the hull's [V], and the hull's silhouettes [V, S, S].
    """
    c2w = cameras_at(views, elevation)
    shown = hull_silhouettes(visual_hull(views, c2w), views, c2w)
    common = torch.minimum(shown, views.silhouettes).sum((1, 2))
    either = torch.maximum(shown, views.silhouettes).sum((1, 2))
    return common / either.clamp_min(1e-6), shown


def cameras_at(views: RelativeViews, elevation: float) -> Tensor:
    """Camera-to-world matrices [V, 4, 4] if the picture was taken from `elevation` (degrees) and azimuth 0."""
    angles = (views.raised + elevation).deg2rad(), views.turned.deg2rad()
    return look_at_origin(spherical_to_cartesian(*angles, torch.full_like(views.raised, views.distance)))


def visual_hull(views: RelativeViews, c2w: Tensor) -> Tensor:  # [V, 4, 4]
    """Occupancy of a grid around the origin [CELLS, CELLS, CELLS] in [0, 1], its axes z, y, x.

    A point is as full as the second emptiest of the views says: one view may be wrong about it, as drawn ones are.
    """
    along = ((torch.arange(CELLS).to(c2w) + 0.5) / CELLS * 2 - 1) * views.half_side
    z, y, x = torch.meshgrid(along, along, along, indexing="ij")
    points = torch.stack([x, y, z], dim=-1).reshape(-1, 3)
    least = sampled_silhouettes(views, c2w, points).topk(2, dim=0, largest=False).values
    return least[1].reshape(CELLS, CELLS, CELLS)


def sampled_silhouettes(views: RelativeViews, c2w: Tensor, points: Tensor) -> Tensor:  # [V, 4, 4], [N, 3]
    """What each silhouette says of each point [V, N]: bilinear, 0 outside of the picture."""
    seen = torch.einsum("vji,vnj->vni", c2w[:, :3, :3], points - c2w[:, None, :3, 3])  # camera axes
    rows_run_down = seen.new_tensor([1.0, -1.0])
    place = seen[..., :2] * rows_run_down / (-seen[..., 2:] * math.tan(views.fovy / 2))
    return F.grid_sample(views.silhouettes[:, None], place[:, None], align_corners=False)[:, 0, 0]


def hull_silhouettes(occupancy: Tensor, views: RelativeViews, c2w: Tensor) -> Tensor:  # [G, G, G], [V, 4, 4]
    """The fullest point on the ray of each pixel: [V, S, S]."""
    size, half = views.silhouettes.shape[-1], views.half_side
    directions = unit_focal_directions(size, size).to(c2w)
    origins, directions = camera_rays(directions, c2w.new_full((len(c2w),), views.fovy), c2w, normalize=True)
    reach = math.sqrt(3) * half  # of the cube's corners
    depths = views.distance + ((torch.arange(RAY_SAMPLES).to(c2w) + 0.5) / RAY_SAMPLES * 2 - 1) * reach
    points = origins[..., None, :] + depths[:, None] * directions[..., None, :]  # [V, S, S, RAY_SAMPLES, 3]
    flat = (points / half).reshape(1, -1, 1, 1, 3)
    sampled = F.grid_sample(occupancy[None, None], flat, align_corners=False)
    return sampled.reshape(points.shape[:-1]).amax(dim=-1)
