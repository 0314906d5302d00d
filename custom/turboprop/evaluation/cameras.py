"""The cameras of an evaluation, and the exact object as they see it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..world.cameras import orbit_c2w
from ..world.captions import ObjectSpec
from ..world.dataset import FOVY_DEG
from ..world.objects import Kind
from ..world.render import SurfaceView, composite, role_colors, shaded_coverage, surface_view

ELEVATION_DEG, DISTANCE, BACKGROUND = 15.0, 2.7, (0.55, 0.55, 0.55)  # within what teachers and judge have seen
SUPERSAMPLE = 2


@dataclass(frozen=True)
class EvaluationCameras:
    """Cameras that look at the origin, and the plain background behind it."""

    elevation: Tensor  # [V] degrees
    azimuth: Tensor  # [V] degrees
    distance: Tensor  # [V] world units
    fovy: Tensor  # [V] radians
    background: Tensor  # [3] in [0, 1]

    @property
    def c2w(self) -> Tensor:  # [V, 4, 4]
        return orbit_c2w(self.elevation, self.azimuth, self.distance)

    def mirrored(self) -> EvaluationCameras:
        """These cameras on the other side of the object: azimuth + 180 degrees."""
        azimuth = torch.remainder(self.azimuth + 180.0, 360.0)
        return EvaluationCameras(self.elevation, azimuth, self.distance, self.fovy, self.background)


def evaluation_cameras(views: int = 8) -> EvaluationCameras:
    """`views` cameras around the object at equal steps, the first in front."""
    return EvaluationCameras(
        elevation=torch.full((views,), ELEVATION_DEG),
        azimuth=torch.arange(views) * (360.0 / views),
        distance=torch.full((views,), DISTANCE),
        fovy=torch.full((views,), math.radians(FOVY_DEG)),
        background=torch.tensor(BACKGROUND),
    )


def exact_surface(kind: Kind, cameras: EvaluationCameras, size: int) -> SurfaceView:
    """What the cameras see of an exact object, at the resolution that `exact_layers` averages down to `size`."""
    return surface_view(kind, cameras.c2w, cameras.fovy, SUPERSAMPLE * size, SUPERSAMPLE * size)


def exact_layers(surface: SurfaceView) -> Tensor:
    """The colourless layers [V, 4, size, size] of an exact object (see world.render.shaded_coverage)."""
    return shaded_coverage(surface, SUPERSAMPLE)


def exact_pictures(spec: ObjectSpec, layers: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """Colour an object's layers: -> rgb [V, S, S, 3], coverage [V, S, S], both in [0, 1]; background [3]."""
    count = len(layers)
    colors = role_colors(spec.main, spec.accent).to(layers).expand(count, -1, -1)
    pictures = composite(layers, colors, background.to(layers).expand(count, -1))
    return pictures.permute(0, 2, 3, 1), layers[:, 3]


def turned_surface(kind: Kind, cameras: EvaluationCameras, surface: SurfaceView) -> SurfaceView:
    """What the cameras see of the object turned by 180 degrees around the vertical, in the same light.

    That is the view of the object itself from the opposite azimuth, its normals turned.
    Opposite views that `surface` already holds are not traced again.
    """
    mirrored = cameras.mirrored()

    def key(c: EvaluationCameras, view: int) -> tuple:
        values = (c.elevation, torch.remainder(c.azimuth, 360.0), c.distance, c.fovy)
        return tuple(round(float(v[view]), 3) for v in values)

    views = range(len(surface.mask))
    known = {key(cameras, view): view for view in views}
    sources = [known.get(key(mirrored, view)) for view in views]
    if None in sources:
        opposite = exact_surface(kind, mirrored, surface.mask.shape[1] // SUPERSAMPLE)
    else:
        opposite = SurfaceView(*(getattr(surface, name)[sources] for name in ("mask", "depth", "normal", "role")))
    return replace(opposite, normal=opposite.normal * opposite.normal.new_tensor([-1.0, -1.0, 1.0]))
