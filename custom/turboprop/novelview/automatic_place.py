"""`data.default_azimuth_deg=auto`, and `default_elevation_deg=auto` beside a caption: where a picture was taken from.

It takes a teacher that is told the caption and the camera, which Magic123's configs have beside the novel-view model.
Every key of `data` and `system` whose name ends in azimuth_deg or elevation_deg and whose value is auto gets the
estimate. Without such a teacher the elevation alone can be estimated, see `automatic_elevation`.
"""

from __future__ import annotations

from omegaconf import DictConfig
from torch import Tensor

import threestudio
from threestudio.utils.config_completion import Record, register_config_completion
from threestudio.utils.devices import get_device
from threestudio.utils.saving import SaverMixin

from ..teachers import load_teacher
from ..teachers.text import encode_prompts
from . import automatic_caption, automatic_elevation  # noqa: F401 (they are registered first: it needs what they find)
from .config_picture import (
    Angles,
    automatic_keys,
    first_picture,
    known_place,
    novel_view_guidance,
    put_angles,
    refuse_azimuth_without_teacher,
)
from .place_estimate import PlaceEstimate, captioned_picture, estimate_place, picture_for

KEY = "data.default_azimuth_deg"
ENDINGS = ("elevation_deg", "azimuth_deg")


@register_config_completion
def complete_place(cfg: DictConfig) -> Record | None:
    """Puts the estimates in the place of auto; does nothing where no key says so."""
    if not any(list(automatic_keys(node, ending)) for node in (cfg.data, cfg.system) for ending in ENDINGS):
        return None
    _, guidance = novel_view_guidance(cfg, KEY, "give the azimuth in degrees")
    rgba, camera = first_picture(guidance)
    if camera is not None:
        threestudio.info(f"of the first picture's camera: {' and '.join(put_angles(cfg, camera))}")
        return None
    refuse_azimuth_without_teacher(cfg)
    estimate = _estimated(cfg, rgba)
    told = " and ".join(put_angles(cfg, Angles(estimate.elevation, estimate.azimuth)))
    threestudio.info(
        f"estimated for '{cfg.system.prompt_processor.prompt}': {told} (error of the noise that the teacher predicts: "
        f"{estimate.least_error:.4f} near there, {estimate.mean_error:.4f} on average)"
    )
    found = {"elevation_deg": estimate.elevation, "azimuth_deg": estimate.azimuth}

    def record(saver: SaverMixin) -> None:
        candidates = {"elevations_deg": list(estimate.elevations), "azimuths_deg": list(estimate.azimuths)}
        saver.save_json("place.json", {**found, **candidates, "errors": [list(line) for line in estimate.errors]})

    return record


def _estimated(cfg: DictConfig, rgba: Tensor) -> PlaceEstimate:  # [S, S, 4], straight alpha
    processor = cfg.system.prompt_processor
    teacher = load_teacher(cfg.system.guidance.pretrained_model_name_or_path, get_device())
    text = encode_prompts(processor.pretrained_model_name_or_path, [processor.prompt], get_device())
    seen = captioned_picture(teacher, picture_for(teacher, rgba), text.local_embeddings)
    return estimate_place(teacher, seen, known_place(cfg))
