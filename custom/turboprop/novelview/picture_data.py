"""`turboprop-image-datamodule`: a picture of an object, framed for a novel-view model, or several with cameras."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import threestudio
from threestudio.data.image import ReferenceViewsDataModule, SingleImageDataModuleConfig, check_config
from threestudio.data.reference_views import ReferenceViews
from threestudio.utils.config import parse_structured
from threestudio.utils.errors import UserError

from .framing import FramingConfig, check_framing
from .posed_pictures import CameraPlace, load_pictures


@dataclass
class ImageDataModuleConfig(SingleImageDataModuleConfig):
    """image_path may be a folder or a transforms.json too, see posed_pictures; then the place is theirs."""

    framing: dict = field(default_factory=dict)  # how a single picture is centred and scaled, see framing


@threestudio.register("turboprop-image-datamodule")
class ImageDataModule(ReferenceViewsDataModule):
    soft_mask = True  # small pictures have wide antialiased outlines

    def __init__(self, cfg: Any = None) -> None:
        super().__init__()
        self.cfg = parse_structured(ImageDataModuleConfig, cfg)
        check_config(self.cfg)
        for key in ("requires_depth", "requires_normal"):
            if self.cfg[key]:
                raise UserError(f"data.{key}: only single-image-datamodule reads maps; expected false")
        self.framing = parse_structured(FramingConfig, self.cfg.framing)
        check_framing(self.framing, "data.framing")

    def reference_views(self) -> ReferenceViews:
        cfg = self.cfg
        place = CameraPlace(
            cfg.default_elevation_deg, cfg.default_azimuth_deg, cfg.default_camera_distance, cfg.default_fovy_deg
        )
        return load_pictures(cfg.image_path, place, self.framing, "data.image_path")
