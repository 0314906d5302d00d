"""`data.default_elevation_deg=auto`: the elevation of a single picture is estimated before the run is built.

This is for runs without a teacher that is told captions and cameras; where there is one, `automatic_place` asks it.
Every key of `data` and `system` whose name ends in elevation_deg and whose value is auto gets the estimate, so that
data, guidance and the evaluation's cameras agree. The views are drawn by the model that the run's guidance names.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

import threestudio
from threestudio.data.image import SingleImageDataModuleConfig
from threestudio.utils.config_completion import Record, register_config_completion
from threestudio.utils.devices import get_device
from threestudio.utils.errors import UserError
from threestudio.utils.saving import SaverMixin

from .config_picture import (
    automatic_keys,
    camera_teacher_of,
    first_picture,
    novel_view_guidance,
    refuse_azimuth_without_teacher,
)
from .elevation_estimate import ElevationEstimate, RelativeViews, estimate_elevation, overlaps
from .guidance import NovelViewGuidance, load_novel_view_teacher
from .relative_views import drawn_relative_views
from .teacher import NovelViewTeacher

KEY = "data.default_elevation_deg"
LEAST_CONTRAST = 0.05  # of the scores, see ElevationEstimate.contrast; below it the views tell next to nothing


@register_config_completion
def complete_elevation(cfg: DictConfig) -> Record | None:
    """Puts the estimate in the place of auto; does nothing where no key says so."""
    places = [*automatic_keys(cfg.data, "elevation_deg"), *automatic_keys(cfg.system, "elevation_deg")]
    if not places or camera_teacher_of(cfg) is not None:
        return None
    kind, guidance = novel_view_guidance(cfg, KEY, "give the elevation in degrees")
    rgba, camera = first_picture(guidance)
    if camera is not None:
        for node, name in places:
            node[name] = camera.elevation
        threestudio.info(f"{KEY}: {camera.elevation:.1f}, the first picture's")
        return None
    refuse_azimuth_without_teacher(cfg)  # before anything is drawn
    fourth_number = kind.fourth_number if issubclass(kind, NovelViewGuidance) else None
    teacher = load_novel_view_teacher(guidance, get_device(), fourth_number)
    if teacher.model.settings.fourth_number != "distance_difference":
        raise UserError(
            f"{KEY}: auto needs a model that is told relative cameras alone, but "
            f"{guidance.pretrained_model_name_or_path} is told the picture's elevation; give it in degrees"
        )
    fovy_deg = cfg.data.get("default_fovy_deg", SingleImageDataModuleConfig.default_fovy_deg)
    estimate, record = estimated_from(teacher, rgba, guidance.cond_camera_distance, fovy_deg)
    for node, name in places:
        node[name] = estimate.elevation
    return record


def estimated_from(
    teacher: NovelViewTeacher,
    rgba: Tensor,  # [S, S, 4], straight alpha
    distance: float,  # world units
    fovy_deg: float,
) -> tuple[ElevationEstimate, Record]:
    """The estimate, said in a line, and what writes elevation.json and elevation.png."""
    views, pictures = drawn_relative_views(teacher, rgba, distance, fovy_deg)
    estimate = estimate_elevation(views)
    scores = ", ".join(f"{angle:g}: {score:.3f}" for angle, score in zip(estimate.candidates, estimate.scores))
    threestudio.info(
        f"{KEY}: estimated as {estimate.elevation:.1f} degrees from {len(pictures) - 1} drawn views "
        f"(overlap of silhouettes at each elevation, {scores})"
    )
    if estimate.contrast < LEAST_CONTRAST:
        threestudio.warn(
            f"{KEY}: the drawn views agree nearly as well at any elevation (by {estimate.contrast:.3f}), so that the "
            "estimate is a guess; give the elevation in degrees"
        )
    elif estimate.at_an_end:
        threestudio.warn(f"{KEY}: the estimate lies at an end of the range that is looked at; check elevation.png")

    def record(saver: SaverMixin) -> None:
        save_estimate(saver, estimate, views, pictures)

    return estimate, record


def save_estimate(
    saver: SaverMixin,
    estimate: ElevationEstimate,
    views: RelativeViews,
    pictures: Tensor,  # [V, 3, S, S]
) -> None:
    """elevation.json: the scores. elevation.png: pictures, silhouettes, and the hull's silhouettes at the estimate."""
    each, shown = overlaps(views, estimate.elevation)
    views_told = zip(views.raised.tolist(), views.turned.tolist(), each.tolist())
    saver.save_json(
        "elevation.json",
        {
            "elevation_deg": estimate.elevation,
            "candidates_deg": list(estimate.candidates),
            "scores": list(estimate.scores),
            "views": [{"raised_deg": up, "turned_deg": turn, "overlap": value} for up, turn, value in views_told],
        },
    )
    size = views.silhouettes.shape[-1]
    small = F.interpolate(pictures, (size, size), mode="bilinear", antialias=True)
    rows = [small, *(layer[:, None].expand(-1, 3, -1, -1) for layer in (views.silhouettes, shown))]
    stacked = torch.cat(rows, dim=2).clamp(0, 1)  # [V, 3, 3 S, S], a column a view
    saver.save_image("elevation.png", (torch.cat([*stacked], dim=2).permute(1, 2, 0) * 255).round().to(torch.uint8))
