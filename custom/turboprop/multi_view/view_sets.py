"""Cameras in sets: the views of one object that a multi-view teacher looks at together.

The cameras of a set stand at equal steps of azimuth, at one elevation, distance and field of view, as in MVDream's
training (Shi et al. 2023, arXiv 2308.16512, section 4). All draws come from torch's global generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from threestudio.data.uncond import RandomCameraIterableDataset
from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import check_at_least


@dataclass(frozen=True)
class ViewSets:
    """How the sets of a batch are drawn. Raises ValueError, which names the key, for a value that cannot be."""

    n_view: int  # cameras of a set
    # Distances are in units of 1 / tan(fovy / 2), in which an object looks equally large in any field of view.
    relative_radius: bool = False
    # Factors on the field of view once the distance is set; below 1 the camera zooms in.
    zoom_range: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        check_at_least("data.n_view", self.n_view, 1)
        if len(self.zoom_range) != 2 or not 0 < self.zoom_range[0] <= self.zoom_range[1]:
            raise UserError(
                f"data.zoom_range: expected two numbers above 0, the lower first, got {list(self.zoom_range)}"
            )

    def sets_in(self, views: int) -> int:
        """The number of sets in so many views. Raises ValueError where they are not whole sets."""
        if views % self.n_view:
            raise UserError(
                f"data.batch_size: expected a multiple of n_view, which is {self.n_view}; got {views} views"
            )
        return views // self.n_view

    def draw(self, cameras: RandomCameraIterableDataset) -> dict[str, Any]:
        """A batch of `cameras.batch_size` views, set by set, from the ranges that `cameras` has at this step.

        It holds what the batches of `cameras` hold. The views of a set share their perturbations, where the config has
        any, and where the light stands to the camera, as in threestudio-mvdream's data.
        """
        count, views = self.sets_in(cameras.batch_size), self.n_view
        azimuth = set_azimuths(count, views, cameras.azimuth_range, cameras.cfg.batch_uniform_azimuth)
        elevation, distances, fovy = (
            draw(count) for draw in (cameras.draw_elevation, cameras.draw_distances, cameras.draw_fovy)
        )
        if self.relative_radius:
            distances = distances / torch.tan(0.5 * fovy)
        low, high = self.zoom_range
        fovy = fovy * (torch.rand(count) * (high - low) + low)
        elevation, distances, fovy = (x.repeat_interleave(views) for x in (elevation, distances, fovy))
        c2w = cameras.draw_poses(elevation, azimuth, distances, views)
        return cameras.drawn_batch(c2w, fovy, elevation, azimuth, distances, views)


def set_azimuths(
    count: int,
    n_view: int,
    azimuth_range: tuple[float, float],  # degrees
    stratified: bool,  # the sets divide one step of azimuth among them
) -> Tensor:  # [count * n_view], degrees, set by set
    """Azimuths of `count` sets, each of `n_view` equal steps over the range, the first at random in the first step."""
    first = torch.rand(count)  # in steps
    if stratified:
        first = (first + torch.arange(count)) / count
    low, high = azimuth_range
    steps = first[:, None] + torch.arange(n_view)  # [count, n_view]
    return (low + (high - low) / n_view * steps).flatten()
