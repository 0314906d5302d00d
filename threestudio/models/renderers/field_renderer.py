"""What renderers of fields share: samples where an occupancy grid, or a first pass, finds matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from threestudio.models.background.base import BaseBackground
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.renderers.base import VolumeRenderer
from threestudio.models.renderers.volume_parts import estimator_of, importance_samples
from threestudio.ops.ray_sampling import RaySamples


class FieldRenderer(VolumeRenderer):
    """A subclass says how dense intervals are, for sampling alone, by `interval_density`."""

    @dataclass
    class Config(VolumeRenderer.Config):
        num_samples_per_ray: int = 512  # occgrid: steps over the cube's diagonal; importance: resampled ones of a ray
        randomized: bool = True  # jitter the samples while training
        eval_chunk_size: int = 160000  # points per query outside training
        near_plane: float = 0.0  # nearest sample, world units
        far_plane: float = 1e10  # farthest sample
        estimator: str = "occgrid"  # occgrid: occupancy grid; importance: coarse samples, then resampled
        ema_decay: float = 0.95  # occgrid: share of a cell's value that is left by its next update
        grid_prune: bool = True  # occgrid: skip cells found empty; false: every sample in the cube is shaded
        prune_alpha_threshold: bool = True  # occgrid with grid_prune: skip samples of opacity < 0.01
        num_samples_per_ray_importance: int = 64  # importance: equal intervals of a ray, shaded with the others

    cfg: Config

    def configure(self, geometry: BaseGeometry, material: BaseMaterial, background: BaseBackground) -> None:
        super().configure(geometry, material, background)
        self.estimator = estimator_of(self.cfg, self.bbox)
        # the cube's diagonal in num_samples_per_ray steps, world units
        self.render_step_size = 1.732 * 2 * self.cfg.radius / self.cfg.num_samples_per_ray

    def interval_density(self, rays_o: Tensor, rays_d: Tensor, t_starts: Tensor, t_ends: Tensor) -> Tensor:
        """Density [S] of intervals [S] on rays [S, 3], without gradient."""
        raise TypeError(f"{type(self).__name__} does not define interval_density")

    def sample(self, rays_o: Tensor, rays_d: Tensor) -> RaySamples:
        """rays_o, rays_d [N, 3] -> packed samples by the occupancy grid, or where coarse ones found matter."""
        cfg, stratified = self.cfg, self.cfg.randomized and self.training

        def density(t_starts: Tensor, t_ends: Tensor, ray: Tensor) -> Tensor:
            return self.interval_density(rays_o[ray], rays_d[ray], t_starts, t_ends)

        if cfg.estimator == "occgrid":
            prune = cfg.grid_prune and cfg.prune_alpha_threshold  # upstream's: without grid_prune nothing is dropped
            return self.estimator.sampling(
                rays_o,
                rays_d,
                sigma_fn=density if prune else None,
                near_plane=cfg.near_plane,
                far_plane=cfg.far_plane,
                render_step_size=self.render_step_size,
                early_stop_eps=1e-4 if prune else 0.0,
                alpha_thre=0.01 if prune else 0.0,
                stratified=stratified,
            )
        # Upstream's roles of the two keys, whatever their names suggest: the proposal has ..._importance.
        coarse, fine = cfg.num_samples_per_ray_importance, cfg.num_samples_per_ray
        planes = (cfg.near_plane, cfg.far_plane)
        return importance_samples(self.estimator, density, rays_o, rays_d, self.bbox, planes, coarse, fine, stratified)

    def update_occupancy(self, global_step: int, occupancy: Callable[[Tensor], Tensor]) -> None:
        """A training step's look at the field, where there is an occupancy grid that prunes.

        occupancy: points [M, 3] -> [M, 1], of a step's length.
        """
        if self.cfg.estimator == "occgrid" and self.cfg.grid_prune:
            self.estimator.update_every_n_steps(global_step, occupancy, ema_decay=self.cfg.ema_decay)
