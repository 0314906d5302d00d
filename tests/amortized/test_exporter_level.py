"""An exported mesh is as large as the object that pictures show."""

import math

import numpy as np
import pytest
import torch
from turboprop.world.cameras import orbit_c2w, pixel_rays

import threestudio
from tests.amortized.scenes import scene
from threestudio.utils.errors import UserError

RADIUS, DISTANCE, FOVY, SIZE = 0.4, 3.0, 0.5, 96


def exporter(renderer, **keys):
    parts = {"geometry": renderer.geometry, "material": renderer.material, "background": renderer.background}
    return threestudio.find("turboprop-prompt-mesh-exporter")({"resolution": 64, **keys}, **parts)


def pictured_radius(renderer) -> float:
    """Of a ball in the origin: half of the opaque pixels' width, as a tangent's distance."""
    c2w = orbit_c2w(torch.zeros(1), torch.zeros(1), torch.full((1,), DISTANCE))
    origins, directions = pixel_rays(c2w, torch.full((1,), FOVY), SIZE, SIZE)
    with torch.no_grad():
        out = renderer(origins, directions, space_cache=field_of(renderer))
    share = float((out["opacity"] > 0.5).float().mean())  # of the picture, a disc
    edge = math.sqrt(share / math.pi) * 2 * math.tan(FOVY / 2)
    return DISTANCE * math.sin(math.atan(edge))


def field_of(renderer):
    return renderer.geometry.generate_space_cache(torch.zeros(1, 3), torch.zeros(1, 6))


def test_the_mesh_is_as_large_as_the_picture():
    _, renderer = scene({"inv_std": 60.0, "num_samples_per_ray": 256, "min_weight": 0.0}, sphere_radius=RADIUS)
    shown = pictured_radius(renderer)
    mesh, _ = exporter(renderer).mesh_of(field_of(renderer), renderer.outline_level())
    exported = np.linalg.norm(mesh.vertices, axis=1).mean()
    assert exported == pytest.approx(shown, abs=0.015) and exported > RADIUS + 0.015
    plain, _ = exporter(renderer, level=0.0).mesh_of(field_of(renderer), renderer.outline_level())
    assert np.linalg.norm(plain.vertices, axis=1).mean() == pytest.approx(RADIUS, abs=0.003)


@pytest.mark.parametrize("level", ["middle", math.nan])
def test_a_wrong_level_is_named(level):
    with pytest.raises(UserError, match=f"exporter.level: expected a number or outline, got {level!r}"):
        exporter(scene()[1], level=level)
