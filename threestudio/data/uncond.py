"""Random cameras around the origin to train with, and an orbit of them to look with.

All draws come from torch's global generator, which the host keys to the step.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import ListConfig
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

import threestudio
from threestudio.data.cameras import (
    batch_of_cameras,
    look_at,
    look_at_origin,
    spherical_to_cartesian,
    unit_focal_directions,
)
from threestudio.data.stepwise import StepwiseDataModule
from threestudio.utils.base import Updateable
from threestudio.utils.config import parse_structured
from threestudio.utils.errors import UserError
from threestudio.utils.memory import check_memory

BYTES_BY_RAY = 4 * (3 + 3 + 3)  # its origin, its direction, and the camera's own direction


@dataclass
class RandomCameraDataModuleConfig:
    height: Any = 64  # pixels; a list has one for each stage between resolution_milestones
    width: Any = 64  # the same
    batch_size: Any = 1  # cameras a step; the same
    resolution_milestones: list[int] = field(default_factory=list)  # steps at which the next stage begins
    eval_height: int = 512  # pixels of validation and test views
    eval_width: int = 512
    eval_batch_size: int = 1  # kept for upstream's configs; views are rendered one at a time
    n_val_views: int = 1  # equally spaced over the circle
    n_test_views: int = 120  # equally spaced, first and last at the same place
    elevation_range: tuple[float, float] = (-10, 90)  # degrees
    azimuth_range: tuple[float, float] = (-180, 180)  # degrees, from +x to +y
    camera_distance_range: tuple[float, float] = (1, 1.5)  # world units from the origin
    fovy_range: tuple[float, float] = (40, 70)  # vertical field of view, degrees
    camera_perturb: float = 0.1  # position: uniform in +- this, world units
    center_perturb: float = 0.2  # point looked at: standard deviation, world units
    up_perturb: float = 0.02  # up vector: standard deviation
    light_position_perturb: float = 1.0  # light direction around the camera's: standard deviation
    light_distance_range: tuple[float, float] = (0.8, 1.5)  # world units from the origin
    eval_elevation_deg: float = 15.0  # degrees
    eval_camera_distance: float = 1.5  # world units
    eval_fovy_deg: float = 70.0  # degrees
    # dreamfusion: around the camera; magic3d: 30 to 90 degrees above its view
    light_sample_strategy: str = "dreamfusion"
    batch_uniform_azimuth: bool = True  # one camera in each of B equal sectors
    progressive_until: int = 0  # step up to which the angles widen from the evaluation view to their ranges
    rays_d_normalize: bool = True  # whether ray directions have unit length


def _stages(value: Any, key: str) -> list[int]:
    stages = list(value) if isinstance(value, (list, tuple, ListConfig)) else [value]
    for stage in stages:
        if isinstance(stage, bool) or not isinstance(stage, int) or stage < 1:
            raise UserError(f"data.{key}: expected positive integers, got {value!r}")
    return stages


def stages_of(values: dict[str, Any], milestones: Any) -> list[list[int]]:
    """The values of each key for each stage, in lists of one length; last the steps at which stages begin, -1 first.

    `values` has a number, or one for each stage, for each key of `data`. Raises UserError with the key that is wrong.
    """
    stages = {key: _stages(value, key) for key, value in values.items()}
    n_stages = max(map(len, stages.values()))
    for key, given in stages.items():
        if len(given) not in (1, n_stages):
            raise UserError(f"data.{key}: expected 1 or {n_stages} values (one for each stage), got {given}")
        stages[key] = given * n_stages if len(given) == 1 else given
    milestones = list(milestones)
    if n_stages > 1 and len(milestones) != n_stages - 1:
        expected = f"expected {n_stages - 1} steps for {n_stages} stages"
        raise UserError(f"data.resolution_milestones: {expected}, got {milestones}")
    if any(later <= earlier for earlier, later in zip(milestones, milestones[1:])):
        raise UserError(f"data.resolution_milestones: expected steps that rise, got {milestones}")
    # Without stages, milestones have nothing to switch.
    return [*stages.values(), [-1, *milestones] if n_stages > 1 else [-1]]


def _check_config(cfg: RandomCameraDataModuleConfig) -> None:
    for key in ("elevation_range", "azimuth_range", "camera_distance_range", "fovy_range", "light_distance_range"):
        value = list(getattr(cfg, key))
        if len(value) != 2 or not value[0] <= value[1] or not all(map(math.isfinite, value)):
            raise UserError(f"data.{key}: expected two finite numbers, the lower first, got {value}")
    for key in ("eval_height", "eval_width", "n_val_views", "n_test_views"):
        if getattr(cfg, key) < 1:
            raise UserError(f"data.{key}: expected >= 1, got {getattr(cfg, key)}")
    # Beyond a pole a camera stands on the other side, where azimuth, and the prompt's view with it, are not its own.
    if not (-90 <= cfg.elevation_range[0] and cfg.elevation_range[1] <= 90):
        raise UserError(
            f"data.elevation_range: expected angles between -90 and 90 degrees, got {list(cfg.elevation_range)}"
        )
    if not -90 <= cfg.eval_elevation_deg <= 90:
        raise UserError(f"data.eval_elevation_deg: expected between -90 and 90, got {cfg.eval_elevation_deg:g}")
    if not (0 < cfg.fovy_range[0] and cfg.fovy_range[1] < 180):
        raise UserError(f"data.fovy_range: expected angles between 0 and 180 degrees, got {list(cfg.fovy_range)}")
    if not cfg.camera_distance_range[0] > 0:
        raise UserError(f"data.camera_distance_range: expected more than 0, got {list(cfg.camera_distance_range)}")
    for key, low, high in (("eval_fovy_deg", 0, 180), ("eval_camera_distance", 0, float("inf"))):
        if not low < getattr(cfg, key) < high:
            raise UserError(f"data.{key}: expected between {low} and {high:g}, got {getattr(cfg, key):g}")
    needed = cfg.eval_height * cfg.eval_width * BYTES_BY_RAY
    check_memory(needed, torch.device("cpu"), "data.eval_height", cfg.eval_height)
    strategy = cfg.light_sample_strategy
    if strategy not in ("dreamfusion", "magic3d"):
        raise UserError(f"data.light_sample_strategy: expected dreamfusion or magic3d, got {strategy!r}")


def _uniform(n: int, bounds: tuple[float, float]) -> Tensor:
    return torch.rand(n) * (bounds[1] - bounds[0]) + bounds[0]


def _of_sets(drawn: Tensor, n_view: int) -> Tensor:
    """Draws [B, ...] of which each set of n_view cameras has its first camera's."""
    return drawn[::n_view].repeat_interleave(n_view, dim=0)


class RandomCameraIterableDataset(IterableDataset, Updateable):
    """Endless batches of random cameras; ``collate`` draws one."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg: RandomCameraDataModuleConfig = cfg
        _check_config(cfg)
        stages = {"height": cfg.height, "width": cfg.width, "batch_size": cfg.batch_size}
        self.heights, self.widths, self.batch_sizes, self.resolution_milestones = stages_of(
            stages, cfg.resolution_milestones
        )
        for height, width, size in zip(self.heights, self.widths, self.batch_sizes):
            check_memory(size * height * width * BYTES_BY_RAY, torch.device("cpu"), "data.height", height)
        self.directions_unit_focals = [unit_focal_directions(h, w) for h, w in zip(self.heights, self.widths)]
        self.elevation_range = tuple(cfg.elevation_range)
        self.azimuth_range = tuple(cfg.azimuth_range)
        self.camera_distance_range = tuple(cfg.camera_distance_range)
        self.fovy_range = tuple(cfg.fovy_range)
        self._set_stage(0)
        self.progressive_view(0)

    def _set_stage(self, stage: int) -> None:
        self.height, self.width = self.heights[stage], self.widths[stage]
        self.batch_size = self.batch_sizes[stage]
        self.directions_unit_focal = self.directions_unit_focals[stage]

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        self._set_stage(bisect.bisect_right(self.resolution_milestones, global_step) - 1)
        self.progressive_view(global_step)

    def progressive_view(self, global_step: int) -> None:
        r = min(1.0, global_step / self.cfg.progressive_until) if self.cfg.progressive_until > 0 else 1.0
        start = self.cfg.eval_elevation_deg
        self.elevation_range = tuple((1 - r) * start + r * end for end in self.cfg.elevation_range)
        self.azimuth_range = tuple(r * end for end in self.cfg.azimuth_range)

    def __iter__(self) -> Iterator[dict]:
        while True:
            yield {}

    def collate(self, batch: Any) -> dict[str, Any]:
        """Draws a batch of cameras; see ``batch_of_cameras`` for what it holds."""
        n = self.batch_size
        elevation, azimuth = self.draw_elevation(n), self._draw_azimuth()  # [B], degrees
        distances = self.draw_distances(n)
        c2w = self.draw_poses(elevation, azimuth, distances)
        fovy = self.draw_fovy(n)
        return self.drawn_batch(c2w, fovy, elevation, azimuth, distances)

    def drawn_batch(
        self,
        c2w: Tensor,  # [B, 4, 4]
        fovy: Tensor,  # [B], radians
        elevation: Tensor,  # [B], degrees
        azimuth: Tensor,  # [B], degrees
        distances: Tensor,  # [B]
        n_view: int = 1,
    ) -> dict[str, Any]:
        """The batch of these cameras, at the stage's size; draws a light for each, one way in sets of n_view."""
        light_positions = self._draw_lights(c2w[:, :3, 3], n_view)
        return {
            **batch_of_cameras(c2w, fovy, self.directions_unit_focal, self.cfg.rays_d_normalize),
            "light_positions": light_positions,
            "elevation": elevation,
            "azimuth": azimuth,
            "camera_distances": distances,
        }

    def draw_elevation(self, count: int) -> Tensor:
        """Elevations [count], degrees."""
        low, high = self.elevation_range
        # One coin a batch: uniform in the angle (poles seen more often), or uniform on the sphere.
        if torch.rand(()).item() < 0.5:
            return _uniform(count, (low, high))
        bounds = (math.sin(math.radians(low)), math.sin(math.radians(high)))
        return _uniform(count, bounds).clamp(-1, 1).asin().rad2deg()

    def draw_distances(self, count: int) -> Tensor:
        """Distances from the origin [count]."""
        return _uniform(count, self.camera_distance_range)

    def draw_fovy(self, count: int) -> Tensor:
        """Vertical fields of view [count], radians."""
        return _uniform(count, self.fovy_range).deg2rad()

    def draw_poses(
        self,
        elevation: Tensor,  # [B], degrees
        azimuth: Tensor,  # [B], degrees
        distances: Tensor,  # [B]
        n_view: int = 1,
    ) -> Tensor:  # [B, 4, 4]
        """Camera-to-world matrices of cameras that look at the origin, moved by the config's perturbations.

        The cameras of a set of n_view are moved together.
        """
        n = elevation.shape[0]
        positions = spherical_to_cartesian(elevation.deg2rad(), azimuth.deg2rad(), distances)
        positions = positions + _of_sets(torch.rand(n, 3) * 2 - 1, n_view) * self.cfg.camera_perturb
        center = _of_sets(torch.randn(n, 3), n_view) * self.cfg.center_perturb
        up = torch.tensor([0.0, 0.0, 1.0]) + _of_sets(torch.randn(n, 3), n_view) * self.cfg.up_perturb
        return look_at(positions, center, up)

    def _draw_azimuth(self) -> Tensor:
        u = torch.rand(self.batch_size)
        if self.cfg.batch_uniform_azimuth:
            u = (u + torch.arange(self.batch_size)) / self.batch_size
        low, high = self.azimuth_range
        return u * (high - low) + low

    def _draw_lights(self, camera_positions: Tensor, n_view: int) -> Tensor:
        """Point lights [B, 3], one for each camera; those of a set of n_view stand alike to their cameras."""
        n = camera_positions.shape[0]
        distances = _of_sets(_uniform(n, tuple(self.cfg.light_distance_range)), n_view)
        if self.cfg.light_sample_strategy == "dreamfusion":
            around = camera_positions + _of_sets(torch.randn(n, 3), n_view) * self.cfg.light_position_perturb
            return F.normalize(around, dim=-1) * distances[:, None]
        # magic3d: within 60 degrees of the camera's direction, whose frame is (x, y, z).
        z = F.normalize(camera_positions, dim=-1)
        x = F.normalize(torch.stack([z[:, 1], -z[:, 0], torch.zeros(n)], dim=-1), dim=-1)
        y = F.normalize(torch.linalg.cross(z, x, dim=-1), dim=-1)
        azimuth = _of_sets(_uniform(n, (-math.pi, math.pi)), n_view)
        elevation = _of_sets(_uniform(n, (math.pi / 6, math.pi / 2)), n_view)
        local = spherical_to_cartesian(elevation, azimuth, distances)
        return (torch.stack([x, y, z], dim=-1) @ local[:, :, None])[:, :, 0]


class RandomCameraDataset(Dataset):
    """An orbit at the evaluation elevation: "val" views do not repeat 360 degrees, "test" views include both ends."""

    def __init__(self, cfg: Any, split: str) -> None:
        super().__init__()
        self.cfg: RandomCameraDataModuleConfig = cfg
        self.split = split
        _check_config(cfg)
        self.n_views = cfg.n_val_views if split == "val" else cfg.n_test_views
        n = self.n_views
        azimuth = torch.linspace(0, 360.0, n + 1)[:n] if split == "val" else torch.linspace(0, 360.0, n)
        self.azimuth = azimuth  # [V], degrees
        self.elevation = torch.full((n,), float(cfg.eval_elevation_deg))  # [V], degrees
        self.camera_distances = torch.full((n,), float(cfg.eval_camera_distance))
        self.fovy = torch.full((n,), float(cfg.eval_fovy_deg)).deg2rad()
        self.camera_positions = spherical_to_cartesian(
            self.elevation.deg2rad(), azimuth.deg2rad(), self.camera_distances
        )
        # The light is at the camera, as a flash.
        self.light_positions = self.camera_positions
        self.c2w = look_at_origin(self.camera_positions)
        self.directions_unit_focal = unit_focal_directions(cfg.eval_height, cfg.eval_width)

    def __len__(self) -> int:
        return self.n_views

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One view without the batch axis. Its rays are made here: those of 120 views at once would take 755 MB."""
        one = slice(index, index + 1)
        cameras = batch_of_cameras(self.c2w[one], self.fovy[one], self.directions_unit_focal, self.cfg.rays_d_normalize)
        return {
            **{key: value[0] if isinstance(value, Tensor) else value for key, value in cameras.items()},
            "index": index,
            "light_positions": self.light_positions[index],
            "elevation": self.elevation[index],
            "azimuth": self.azimuth[index],
            "camera_distances": self.camera_distances[index],
        }

    def collate(self, batch: list[dict[str, Any]]) -> dict[str, Any]:
        batch = torch.utils.data.default_collate(batch)
        return {**batch, "height": self.cfg.eval_height, "width": self.cfg.eval_width}


@threestudio.register("random-camera-datamodule")
class RandomCameraDataModule(StepwiseDataModule):
    cfg: RandomCameraDataModuleConfig

    def __init__(self, cfg: Any | None = None) -> None:
        super().__init__()
        self.cfg = parse_structured(RandomCameraDataModuleConfig, cfg)

    def setup(self, stage: str | None = None) -> None:
        if stage in (None, "fit"):
            self.train_dataset = RandomCameraIterableDataset(self.cfg)
        if stage in (None, "fit", "validate"):
            self.val_dataset = RandomCameraDataset(self.cfg, "val")
        if stage in (None, "test", "predict"):
            self.test_dataset = RandomCameraDataset(self.cfg, "test")
