"""Random cameras around the origin to train with, and an orbit of them to look with.

All draws come from torch's global generator, which the host keys to the step.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Optional, Tuple

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from omegaconf import ListConfig
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

import threestudio
from threestudio.utils.base import Updateable
from threestudio.utils.config import parse_structured
from threestudio.utils.errors import UserError
from threestudio.utils.memory import check_memory
from threestudio.utils.ops import get_mvp_matrix, get_projection_matrix, get_ray_directions, get_rays

NEAR, FAR = 0.01, 100.0  # planes of the projection matrix, world units
BYTES_BY_RAY = 4 * (3 + 3 + 3)  # its origin, its direction, and the camera's own direction


@dataclass
class RandomCameraDataModuleConfig:
    height: Any = 64  # pixels; a list has one for each stage between resolution_milestones
    width: Any = 64  # the same
    batch_size: Any = 1  # cameras a step; the same
    resolution_milestones: List[int] = field(default_factory=lambda: [])  # steps at which the next stage begins
    eval_height: int = 512  # pixels of validation and test views
    eval_width: int = 512
    eval_batch_size: int = 1  # kept for upstream's configs; views are rendered one at a time
    n_val_views: int = 1  # equally spaced over the circle
    n_test_views: int = 120  # equally spaced, first and last at the same place
    elevation_range: Tuple[float, float] = (-10, 90)  # degrees
    azimuth_range: Tuple[float, float] = (-180, 180)  # degrees, from +x to +y
    camera_distance_range: Tuple[float, float] = (1, 1.5)  # world units from the origin
    fovy_range: Tuple[float, float] = (40, 70)  # vertical field of view, degrees
    camera_perturb: float = 0.1  # position: uniform in +- this, world units
    center_perturb: float = 0.2  # point looked at: standard deviation, world units
    up_perturb: float = 0.02  # up vector: standard deviation
    light_position_perturb: float = 1.0  # light direction around the camera's: standard deviation
    light_distance_range: Tuple[float, float] = (0.8, 1.5)  # world units from the origin
    eval_elevation_deg: float = 15.0  # degrees
    eval_camera_distance: float = 1.5  # world units
    eval_fovy_deg: float = 70.0  # degrees
    light_sample_strategy: str = "dreamfusion"  # dreamfusion: around the camera; magic3d: 30 to 90 degrees above its view
    batch_uniform_azimuth: bool = True  # one camera in each of B equal sectors
    progressive_until: int = 0  # step up to which the angles widen from the evaluation view to their ranges
    rays_d_normalize: bool = True  # whether ray directions have unit length


def _stages(value: Any, key: str) -> List[int]:
    stages = list(value) if isinstance(value, (list, tuple, ListConfig)) else [value]
    for stage in stages:
        if isinstance(stage, bool) or not isinstance(stage, int) or stage < 1:
            raise UserError(f"data.{key}: expected positive integers, got {value!r}")
    return stages


def stages_of(values: Dict[str, Any], milestones: Any) -> List[List[int]]:
    """The values of each key for each stage, all lists of one length, and last the steps at which stages begin, -1 first.

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
        raise UserError(f"data.resolution_milestones: expected {n_stages - 1} steps for {n_stages} stages, got {milestones}")
    # Without stages, milestones have nothing to switch.
    return [*stages.values(), [-1, *milestones] if n_stages > 1 else [-1]]


def _check_config(cfg: RandomCameraDataModuleConfig) -> None:
    for key in ("elevation_range", "azimuth_range", "camera_distance_range", "fovy_range", "light_distance_range"):
        value = list(getattr(cfg, key))
        if len(value) != 2 or not value[0] <= value[1]:
            raise UserError(f"data.{key}: expected two numbers, the lower first, got {value}")
    for key in ("eval_height", "eval_width", "n_val_views", "n_test_views"):
        if getattr(cfg, key) < 1:
            raise UserError(f"data.{key}: expected >= 1, got {getattr(cfg, key)}")
    if not (0 < cfg.fovy_range[0] and cfg.fovy_range[1] < 180):
        raise UserError(f"data.fovy_range: expected angles between 0 and 180 degrees, got {list(cfg.fovy_range)}")
    if not cfg.camera_distance_range[0] > 0:
        raise UserError(f"data.camera_distance_range: expected more than 0, got {list(cfg.camera_distance_range)}")
    for key, low, high in (("eval_fovy_deg", 0, 180), ("eval_camera_distance", 0, float("inf"))):
        if not low < getattr(cfg, key) < high:
            raise UserError(f"data.{key}: expected between {low} and {high:g}, got {getattr(cfg, key):g}")
    check_memory(cfg.eval_height * cfg.eval_width * BYTES_BY_RAY, torch.device("cpu"), "data.eval_height", cfg.eval_height)
    if cfg.light_sample_strategy not in ("dreamfusion", "magic3d"):
        raise UserError(f"data.light_sample_strategy: expected dreamfusion or magic3d, got {cfg.light_sample_strategy!r}")


def look_at(positions: Tensor, center: Tensor, up: Tensor) -> Tensor:
    """Camera-to-world matrices, OpenGL axes. positions, center, up: [B, 3] -> [B, 4, 4]."""
    lookat = F.normalize(center - positions, dim=-1)
    right = F.normalize(torch.linalg.cross(lookat, up, dim=-1), dim=-1)
    up = F.normalize(torch.linalg.cross(right, lookat, dim=-1), dim=-1)
    c2w = torch.zeros(positions.shape[0], 4, 4)
    c2w[:, :3, :] = torch.stack([right, up, -lookat, positions], dim=-1)
    c2w[:, 3, 3] = 1.0
    return c2w


def spherical_to_cartesian(elevation: Tensor, azimuth: Tensor, distance: Tensor) -> Tensor:
    """Angles in radians, [B] each -> [B, 3]."""
    return distance[:, None] * torch.stack(
        [elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], dim=-1
    )


def unit_focal_directions(height: int, width: int) -> Tensor:
    """Ray directions of a camera with a focal length of one pixel [H, W, 3]."""
    return get_ray_directions(H=height, W=width, focal=1.0)


def camera_rays(
    directions: Tensor, fovy: Tensor, c2w: Tensor, normalize: bool, noise_scale: float = 0.0
) -> Tuple[Tensor, Tensor]:
    """directions of focal length 1 [H, W, 3], fovy [B] in radians, c2w [B, 4, 4] -> origins, directions [B, H, W, 3]."""
    focal = 0.5 * directions.shape[0] / torch.tan(0.5 * fovy)  # [B]
    directions = directions.expand(c2w.shape[0], -1, -1, -1).clone()
    directions[..., :2] /= focal[:, None, None, None]
    return get_rays(directions, c2w, keepdim=True, noise_scale=noise_scale, normalize=normalize)


def _uniform(n: int, bounds: Tuple[float, float]) -> Tensor:
    return torch.rand(n) * (bounds[1] - bounds[0]) + bounds[0]


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

    def collate(self, batch: Any) -> Dict[str, Any]:
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
    ) -> Dict[str, Any]:
        """The batch of these cameras, at the stage's size; draws a light for each."""
        light_positions = self._draw_lights(c2w[:, :3, 3])
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
    ) -> Tensor:  # [B, 4, 4]
        """Camera-to-world matrices of cameras that look at the origin, each moved by the config's perturbations."""
        n = elevation.shape[0]
        positions = spherical_to_cartesian(elevation.deg2rad(), azimuth.deg2rad(), distances)
        positions = positions + (torch.rand(n, 3) * 2 - 1) * self.cfg.camera_perturb
        center = torch.randn(n, 3) * self.cfg.center_perturb
        up = torch.tensor([0.0, 0.0, 1.0]) + torch.randn(n, 3) * self.cfg.up_perturb
        return look_at(positions, center, up)

    def _draw_azimuth(self) -> Tensor:
        u = torch.rand(self.batch_size)
        if self.cfg.batch_uniform_azimuth:
            u = (u + torch.arange(self.batch_size)) / self.batch_size
        low, high = self.azimuth_range
        return u * (high - low) + low

    def _draw_lights(self, camera_positions: Tensor) -> Tensor:
        """Point lights [B, 3], one for each camera."""
        n = camera_positions.shape[0]
        distances = _uniform(n, tuple(self.cfg.light_distance_range))
        if self.cfg.light_sample_strategy == "dreamfusion":
            around = camera_positions + torch.randn(n, 3) * self.cfg.light_position_perturb
            return F.normalize(around, dim=-1) * distances[:, None]
        # magic3d: within 60 degrees of the camera's direction, whose frame is (x, y, z).
        z = F.normalize(camera_positions, dim=-1)
        x = F.normalize(torch.stack([z[:, 1], -z[:, 0], torch.zeros(n)], dim=-1), dim=-1)
        y = F.normalize(torch.linalg.cross(z, x, dim=-1), dim=-1)
        azimuth = _uniform(n, (-math.pi, math.pi))
        elevation = _uniform(n, (math.pi / 6, math.pi / 2))
        local = spherical_to_cartesian(elevation, azimuth, distances)
        return (torch.stack([x, y, z], dim=-1) @ local[:, :, None])[:, :, 0]


def batch_of_cameras(
    c2w: Tensor, fovy: Tensor, directions: Tensor, rays_d_normalize: bool, rays_noise_scale: float = 0.0
) -> Dict[str, Any]:
    """What renderers and guidances ask of B cameras.

    Args:
        c2w: [B, 4, 4]; fovy: [B], radians; directions: of focal length 1 [H, W, 3]; rays_noise_scale: see `get_rays`.
    Returns:
        rays_o, rays_d [B, H, W, 3]; mvp_mtx, proj_mtx, c2w [B, 4, 4]; camera_positions [B, 3]; fovy [B]; height, width.
    """
    height, width = directions.shape[:2]
    rays_o, rays_d = camera_rays(directions, fovy, c2w, rays_d_normalize, rays_noise_scale)
    proj_mtx = get_projection_matrix(fovy, width / height, NEAR, FAR)
    return {
        "rays_o": rays_o,
        "rays_d": rays_d,
        "mvp_mtx": get_mvp_matrix(c2w, proj_mtx),
        "proj_mtx": proj_mtx,
        "c2w": c2w,
        "camera_positions": c2w[:, :3, 3],
        "fovy": fovy,
        "height": height,
        "width": width,
    }


class RandomCameraDataset(Dataset):
    """An orbit at the evaluation elevation: ``val`` views do not repeat 360 degrees, ``test`` views include both ends."""

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
        self.camera_positions = spherical_to_cartesian(self.elevation.deg2rad(), azimuth.deg2rad(), self.camera_distances)
        # The light is at the camera, as a flash.
        self.light_positions = self.camera_positions
        up = torch.tensor([0.0, 0.0, 1.0]).expand(n, 3)
        self.c2w = look_at(self.camera_positions, torch.zeros(n, 3), up)
        self.proj_mtx = get_projection_matrix(self.fovy, cfg.eval_width / cfg.eval_height, NEAR, FAR)
        self.mvp_mtx = get_mvp_matrix(self.c2w, self.proj_mtx)
        self.directions_unit_focal = unit_focal_directions(cfg.eval_height, cfg.eval_width)

    def __len__(self) -> int:
        return self.n_views

    def __getitem__(self, index: int) -> Dict[str, Any]:
        """One view without the batch axis. Its rays are made here: those of 120 views at once would take 755 MB."""
        one = slice(index, index + 1)
        rays_o, rays_d = camera_rays(self.directions_unit_focal, self.fovy[one], self.c2w[one], self.cfg.rays_d_normalize)
        return {
            "index": index,
            "rays_o": rays_o[0],
            "rays_d": rays_d[0],
            "mvp_mtx": self.mvp_mtx[index],
            "proj_mtx": self.proj_mtx[index],
            "c2w": self.c2w[index],
            "camera_positions": self.camera_positions[index],
            "light_positions": self.light_positions[index],
            "elevation": self.elevation[index],
            "azimuth": self.azimuth[index],
            "camera_distances": self.camera_distances[index],
            "fovy": self.fovy[index],
            "height": self.cfg.eval_height,
            "width": self.cfg.eval_width,
        }

    def collate(self, batch: List[Dict[str, Any]]) -> Dict[str, Any]:
        batch = torch.utils.data.default_collate(batch)
        return {**batch, "height": self.cfg.eval_height, "width": self.cfg.eval_width}


@threestudio.register("random-camera-datamodule")
class RandomCameraDataModule(pl.LightningDataModule):
    cfg: RandomCameraDataModuleConfig

    def __init__(self, cfg: Optional[Any] = None) -> None:
        super().__init__()
        self.cfg = parse_structured(RandomCameraDataModuleConfig, cfg)

    def setup(self, stage: Optional[str] = None) -> None:
        if stage in (None, "fit"):
            self.train_dataset = RandomCameraIterableDataset(self.cfg)
        if stage in (None, "fit", "validate"):
            self.val_dataset = RandomCameraDataset(self.cfg, "val")
        if stage in (None, "test", "predict"):
            self.test_dataset = RandomCameraDataset(self.cfg, "test")

    def general_loader(self, dataset: Any, batch_size: Optional[int], collate_fn: Any = None) -> DataLoader:
        return DataLoader(dataset, num_workers=0, batch_size=batch_size, collate_fn=collate_fn)

    def train_dataloader(self) -> DataLoader:
        return self.general_loader(self.train_dataset, batch_size=None, collate_fn=self.train_dataset.collate)

    def val_dataloader(self) -> DataLoader:
        return self.general_loader(self.val_dataset, batch_size=1, collate_fn=self.val_dataset.collate)

    def test_dataloader(self) -> DataLoader:
        return self.general_loader(self.test_dataset, batch_size=1, collate_fn=self.test_dataset.collate)

    def predict_dataloader(self) -> DataLoader:
        return self.general_loader(self.test_dataset, batch_size=1, collate_fn=self.test_dataset.collate)
