"""Calls of guidances by a novel-view model, and the gradient that they are to give."""

import torch
from turboprop.distillation.methods import METHODS, Conditions, Query
from turboprop.novelview.teacher import NovelViewTeacher

from threestudio.data.reference_views import orbit_camera, single_view

CAMERAS = {
    "elevation": torch.tensor([10.0, -20.0]),
    "azimuth": torch.tensor([30.0, 200.0]),
    "camera_distances": torch.tensor([2.7, 2.7]),
}
FIXED = {"min_step_percent": 0.5, "max_step_percent": 0.5}


def call(guidance, rgb=None, seed=1, **kwargs):
    rgb = torch.rand(2, 12, 12, 3, generator=torch.Generator().manual_seed(0)) if rgb is None else rgb
    rgb = rgb.clone().requires_grad_(True)
    torch.manual_seed(seed)
    output = guidance(rgb, **{**CAMERAS, "c2w": torch.eye(4).expand(2, 4, 4), "fovy": torch.ones(2), **kwargs})
    return output, rgb


def picture_on_white(ball_picture, size=16):
    views = single_view(str(ball_picture), orbit_camera(5.0, 10.0, 2.7), 0.7)
    return views.at(size, size).on_white().permute(0, 3, 1, 2)


def expected_gradient(folder, picture, rgb, method, scale, fourth=None, seed=1):
    """At the latents, by the pure function and the teacher's own condition."""
    teacher = NovelViewTeacher.from_pretrained(str(folder), fourth_number=fourth)
    positive = teacher.condition(picture, 5.0, 10.0, 2.7, *CAMERAS.values())
    conditions = Conditions(positive, teacher.unconditional(positive))
    images = torch.nn.functional.interpolate(rgb.permute(0, 3, 1, 2), (16, 16), mode="bilinear", align_corners=False)
    torch.manual_seed(seed)
    latents = teacher.encode(images * 2 - 1)
    timesteps = torch.randint(500, 501, (2,))
    shift = torch.rand(2)  # of ASD's t'
    noise = torch.randn_like(latents)
    shifted = timesteps + ((0.1 * (timesteps - 500)).clamp(min=0) * shift).long()
    return METHODS[method](
        Query(
            teacher,
            latents.detach(),
            conditions,
            timesteps,
            noise,
            shifted,
            guidance_scale=scale,
            weighting="sds",
        ),
    ).gradient
