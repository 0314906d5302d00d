"""`data.default_azimuth_deg=auto`: which side of the object a single picture shows is found before the run is built.

It takes a teacher that is told the caption and the camera, which Magic123's configs have beside the novel-view model.
Every key of `data` and `system` whose name ends in azimuth_deg and whose value is auto gets the estimate.
"""

from __future__ import annotations

import torch.nn.functional as F
from omegaconf import DictConfig

import threestudio
from threestudio.utils.config_completion import Record, register_config_completion
from threestudio.utils.devices import get_device
from threestudio.utils.errors import UserError
from threestudio.utils.saving import SaverMixin

from ..teachers import load_teacher
from ..teachers.multi_view.teacher import MultiViewTeacher
from ..teachers.text import encode_prompts
from . import automatic_caption, automatic_elevation  # noqa: F401 (they are registered first: it needs what they find)
from .azimuth_estimate import AzimuthEstimate, PicturePlace, estimate_azimuth
from .config_picture import automatic_keys, novel_view_guidance, single_picture
from .guidance import NovelViewGuidance
from .unified_guidance import Zero123UnifiedGuidance

KEY = "data.default_azimuth_deg"


@register_config_completion
def complete_azimuth(cfg: DictConfig) -> Record | None:
    """Puts the estimate in the place of auto; does nothing where no key says so."""
    places = [*automatic_keys(cfg.data, "azimuth_deg"), *automatic_keys(cfg.system, "azimuth_deg")]
    if not places:
        return None
    _, guidance = novel_view_guidance(cfg, KEY, "give the azimuth in degrees")
    rgba = single_picture(guidance, KEY)
    teacher, processor = _camera_teacher(cfg), cfg.system.prompt_processor
    text = encode_prompts(processor.pretrained_model_name_or_path, [processor.prompt], get_device())
    picture = (rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]).permute(2, 0, 1)
    size = (teacher.image_size, teacher.image_size)
    picture = F.interpolate(picture[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    data = cfg.data
    place = PicturePlace(data.default_elevation_deg, data.default_camera_distance, data.default_fovy_deg)
    estimate = estimate_azimuth(teacher, picture, text.local_embeddings, place)
    least, mean = min(estimate.errors), sum(estimate.errors) / len(estimate.errors)
    threestudio.info(
        f"{KEY}: estimated as {estimate.azimuth:.1f} degrees, for '{processor.prompt}' (error of the noise that the "
        f"teacher predicts: {least:.4f} there, {mean:.4f} on average over all sides)"
    )
    for node, name in places:
        node[name] = estimate.azimuth
    return _recorder(estimate)


def _recorder(estimate: AzimuthEstimate) -> Record:
    def record(saver: SaverMixin) -> None:
        candidates, errors = list(estimate.candidates), list(estimate.errors)
        found = {"azimuth_deg": estimate.azimuth, "candidates_deg": candidates, "errors": errors}
        saver.save_json("azimuth.json", found)

    return record


def _camera_teacher(cfg: DictConfig) -> MultiViewTeacher:
    """The text teacher of `system.guidance`, which is told cameras."""
    name = cfg.system.get("guidance_type")
    kind = threestudio.find(name) if name else None
    folder = (cfg.system.get("guidance") or {}).get("pretrained_model_name_or_path")
    knows_pictures = kind is None or issubclass(kind, (NovelViewGuidance, Zero123UnifiedGuidance))
    teacher = None if knows_pictures or not folder else load_teacher(folder, get_device())
    if not isinstance(teacher, MultiViewTeacher):
        raise UserError(
            f"{KEY}: auto needs a text teacher that is told the camera in system.guidance, as magic123-mini.yaml has; "
            "give the azimuth in degrees"
        )
    return teacher
