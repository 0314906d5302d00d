"""Pictures of an object to look like, beside random cameras to look plausible from."""

from __future__ import annotations

import bisect
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

import threestudio
from threestudio.data.cameras import batch_of_poses, unit_focal_directions
from threestudio.data.reference_views import ReferenceViews, SizedViews, orbit_camera, single_view
from threestudio.data.stepwise import StepwiseDataModule
from threestudio.data.uncond import (
    RandomCameraDataModuleConfig,
    RandomCameraDataset,
    RandomCameraIterableDataset,
    stages_of,
)
from threestudio.utils.base import Updateable
from threestudio.utils.config import parse_structured
from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import check_at_least


@dataclass
class SingleImageDataModuleConfig:
    height: Any = 96  # of the picture while training, pixels; a list has one for each stage
    width: Any = 96  # the same; borders are added to a picture of another shape
    resolution_milestones: list[int] = field(default_factory=list)  # steps at which the next stage begins
    default_elevation_deg: float = 0.0  # where the picture was taken from, degrees
    default_azimuth_deg: float = -180.0  # degrees, from +x to +y
    default_camera_distance: float = 1.2  # world units from the origin
    default_fovy_deg: float = 60.0  # vertical field of view, degrees
    image_path: str = ""  # the picture: RGBA, or any that rembg, where it is installed, takes the background from
    use_random_camera: bool = True  # whether a training batch also has random cameras
    random_camera: dict = field(default_factory=dict)  # keys of random-camera-datamodule, of evaluation's cameras too
    rays_noise_scale: float = 2e-3  # standard deviation of a common offset of all rays of the picture, world units
    batch_size: int = 1  # pictures a step; a single picture has one
    requires_depth: bool = False  # read X_depth.png beside X_rgba.png
    requires_normal: bool = False  # read X_normal.png beside X_rgba.png
    rays_d_normalize: bool = True  # whether the picture's ray directions have unit length


def check_config(cfg: SingleImageDataModuleConfig) -> None:
    """Raises UserError with the key that is wrong."""
    if not cfg.image_path:
        raise UserError("data.image_path: the path of a picture is required")
    if not -90 < cfg.default_elevation_deg < 90:
        raise UserError(f"data.default_elevation_deg: expected between -90 and 90, got {cfg.default_elevation_deg:g}")
    if not cfg.default_camera_distance > 0:
        raise UserError(f"data.default_camera_distance: expected more than 0, got {cfg.default_camera_distance:g}")
    if not 0 < cfg.default_fovy_deg < 180:
        raise UserError(f"data.default_fovy_deg: expected between 0 and 180, got {cfg.default_fovy_deg:g}")
    check_at_least("data.batch_size", cfg.batch_size, 1)
    check_at_least("data.rays_noise_scale", cfg.rays_noise_scale, 0)


class ReferenceViewsIterableDataset(IterableDataset, Updateable):
    """Endless batches of pictures with their cameras, and of random cameras beside them."""

    def __init__(self, cfg: Any, views: ReferenceViews, soft_mask: bool = False) -> None:
        super().__init__()
        self.cfg: SingleImageDataModuleConfig = cfg
        self.views = views
        self.soft_mask = soft_mask
        sizes = {"height": cfg.height, "width": cfg.width}
        self.heights, self.widths, self.milestones = stages_of(sizes, cfg.resolution_milestones)
        self.random_pose_generator: RandomCameraIterableDataset | None = None
        if cfg.use_random_camera:
            with _keys_of_random_cameras():
                self.random_pose_generator = RandomCameraIterableDataset(random_camera_config(cfg))
        self._set_stage(0)

    def _set_stage(self, stage: int) -> None:
        self.stage = stage
        self.height, self.width = self.heights[stage], self.widths[stage]
        self.directions_unit_focal = unit_focal_directions(self.height, self.width)
        self.sized: SizedViews = self.views.at(self.height, self.width)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        stage = bisect.bisect_right(self.milestones, global_step) - 1
        if stage != self.stage:
            self._set_stage(stage)

    def get_all_images(self) -> Tensor:  # [V, H, W, 3]
        """The pictures on white, as they are at this stage."""
        return self.sized.on_white()

    def __iter__(self) -> Iterator[dict]:
        while True:
            yield {}

    def _chosen(self) -> Tensor:
        """Which of V pictures a step looks at."""
        count = len(self.views)
        return torch.arange(count) if count <= self.cfg.batch_size else torch.randperm(count)[: self.cfg.batch_size]

    def collate(self, batch: Any) -> dict[str, Any]:
        """The cameras of some pictures, as random-camera-datamodule has them, with the pictures as rgb [B, H, W, 3] and
        mask [B, H, W, 1], bool, or alpha where it is soft; ref_depth, ref_normal where required, else None;
        random_camera, a batch of its own."""
        cfg, sized, which = self.cfg, self.sized, self._chosen()
        c2w, fovy, directions = self.views.c2w[which], self.views.fovy[which], self.directions_unit_focal
        result = {
            **batch_of_poses(c2w, fovy, directions, cfg.rays_d_normalize, cfg.rays_noise_scale),
            "rgb": sized.rgb[which],
            "mask": (sized.alpha if self.soft_mask else sized.mask)[which],
            "ref_depth": None if sized.depth is None else sized.depth[which],
            "ref_normal": None if sized.normal is None else sized.normal[which],
        }
        if self.random_pose_generator is not None:
            result["random_camera"] = self.random_pose_generator.collate(None)
        return result


def random_camera_config(cfg: SingleImageDataModuleConfig) -> Any:
    return parse_structured(RandomCameraDataModuleConfig, cfg.random_camera)


@contextmanager
def _keys_of_random_cameras() -> Iterator[None]:
    """What is wrong with the random cameras is named by its key here."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"^data\.", "data.random_camera.", str(error))) from error


class ReferenceViewsDataModule(StepwiseDataModule, ABC):
    """Pictures to train with, and the orbit of random-camera-datamodule to look at. Needs `reference_views`."""

    cfg: SingleImageDataModuleConfig
    soft_mask: ClassVar[bool] = False  # whether a batch's mask is the alpha channel, not where that is above one half

    @abstractmethod
    def reference_views(self) -> ReferenceViews:
        """Reads the pictures."""

    def setup(self, stage: str | None = None) -> None:
        if stage in (None, "fit"):
            self.train_dataset = ReferenceViewsIterableDataset(self.cfg, self.reference_views(), self.soft_mask)
        cameras = random_camera_config(self.cfg)
        with _keys_of_random_cameras():
            if stage in (None, "fit", "validate"):
                self.val_dataset = RandomCameraDataset(cameras, "val")
            if stage in (None, "test", "predict"):
                self.test_dataset = RandomCameraDataset(cameras, "test")


@threestudio.register("single-image-datamodule")
class SingleImageDataModule(ReferenceViewsDataModule):
    """One picture, taken from a given place."""

    def __init__(self, cfg: Any | None = None) -> None:
        super().__init__()
        self.cfg = parse_structured(SingleImageDataModuleConfig, cfg)
        check_config(self.cfg)

    def reference_views(self) -> ReferenceViews:
        cfg = self.cfg
        camera = orbit_camera(cfg.default_elevation_deg, cfg.default_azimuth_deg, cfg.default_camera_distance)
        fovy = math.radians(cfg.default_fovy_deg)
        return single_view(cfg.image_path, camera, fovy, cfg.requires_depth, cfg.requires_normal)
