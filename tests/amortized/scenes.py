"""The generator's geometry with its renderer, and rays to see them by."""

import math

import torch
from turboprop.world.cameras import orbit_c2w, pixel_rays

import threestudio

SPHERE, DISTANCE, FOVY = 0.5, 2.7, math.radians(40.0)


def scene(renderer: dict | None = None, **geometry):
    """A geometry, and the renderer on it, in evaluation mode."""
    torch.manual_seed(0)
    shape = threestudio.find("turboprop-3dconv-net")({
        "radius": 1.0, "text_dim": 6, "noise_dim": 3, "style_dim": 8, "feature_dim": 5, "hidden_dim": 8,
        "channels": [6, 5, 4], "constant_bias_up_to": 8, "sphere_radius": SPHERE, **geometry,
    })  # fmt: skip
    material = threestudio.find("no-material")({"n_output_dims": 3, "color_activation": "sigmoid"})
    background = threestudio.find("turboprop-plain-background")({})
    options = {"radius": 1.0, "num_samples_per_ray": 96, "num_samples_per_ray_importance": 0, **(renderer or {})}
    made = threestudio.find("turboprop-generative-volsdf-renderer")(
        options, geometry=shape, material=material, background=background
    )
    for module in (shape, material, background, made):
        module.eval()
    return shape, made


def give_heads_weights(shape, scale: float = 0.06) -> None:
    """Last layers away from zero, so that every prompt has its own shape and colours."""
    torch.manual_seed(1)
    with torch.no_grad():
        shape.heads.sdf[-1].weight.normal_(std=scale)
        shape.heads.color[-1].weight.normal_(std=1.0)


def rays(views: int, size: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    c2w = orbit_c2w(torch.full((views,), 20.0), torch.arange(views) * 360.0 / views, torch.full((views,), DISTANCE))
    origins, directions = pixel_rays(c2w.to(dtype), torch.full((views,), FOVY, dtype=dtype), size, size)
    return {"rays_o": origins, "rays_d": directions}
