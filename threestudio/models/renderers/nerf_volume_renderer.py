"""Volume rendering of a density field (NeRF), with empty space skipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.models.background.base import BaseBackground
from threestudio.models.estimators import ImportanceEstimator, OccupancyGridEstimator
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.renderers.base import VolumeRenderer
from threestudio.models.renderers.volume_parts import background_colors, depth_variance, ray_samples, shade_samples
from threestudio.ops.ray_sampling import RaySamples
from threestudio.ops.volume_rendering import accumulate_along_rays, render_weight_from_density
from threestudio.utils.errors import UserError
from threestudio.utils.ops import chunk_batch, validate_empty_rays


@threestudio.register("nerf-volume-renderer")
class NeRFVolumeRenderer(VolumeRenderer):
    @dataclass
    class Config(VolumeRenderer.Config):
        num_samples_per_ray: int = 512  # occgrid: steps over the cube's diagonal; importance: resampled ones of a ray
        eval_chunk_size: int = 160000  # points per query outside training
        randomized: bool = True  # jitter the samples while training
        near_plane: float = 0.0  # nearest sample, world units
        far_plane: float = 1e10  # farthest sample
        return_comp_normal: bool = False  # composited normals in training too
        return_normal_perturb: bool = False  # normals at points moved a little, for smoothness losses
        estimator: str = "occgrid"  # occgrid: occupancy grid; importance: coarse samples, then resampled
        ema_decay: float = 0.95  # occgrid: share of a cell's value that is left by its next update
        grid_prune: bool = True  # occgrid: skip cells found empty; false: every sample in the cube is shaded
        prune_alpha_threshold: bool = True  # occgrid with grid_prune: skip samples of opacity < 0.01
        proposal_network_config: Optional[dict] = None  # of estimator=proposal, which is not available here
        prop_optimizer_config: Optional[dict] = None  # the same
        prop_scheduler_config: Optional[dict] = None  # the same
        num_samples_per_ray_proposal: int = 64  # the same
        num_samples_per_ray_importance: int = 64  # importance: equal intervals of a ray, shaded with the others

    cfg: Config

    def configure(self, geometry: BaseGeometry, material: BaseMaterial, background: BaseBackground) -> None:
        super().configure(geometry, material, background)
        if self.cfg.estimator == "occgrid":
            self.estimator = OccupancyGridEstimator(self.bbox, resolution=32)
            if not self.cfg.grid_prune:
                self.estimator.fill()
        elif self.cfg.estimator == "importance":
            self.estimator = ImportanceEstimator()
        elif self.cfg.estimator == "proposal":
            raise UserError("renderer.estimator: 'proposal' (learned proposal networks) is not available here, use occgrid or importance")
        else:
            raise UserError(f"renderer.estimator: expected occgrid or importance, got {self.cfg.estimator!r}")
        if self.cfg.num_samples_per_ray < 1:
            raise UserError(f"renderer.num_samples_per_ray: expected >= 1, got {self.cfg.num_samples_per_ray}")
        # The cube's diagonal in num_samples_per_ray steps.
        self.render_step_size = 1.732 * 2 * self.cfg.radius / self.cfg.num_samples_per_ray

    def forward(
        self,
        rays_o: Tensor,
        rays_d: Tensor,
        light_positions: Tensor,
        bg_color: Optional[Tensor] = None,
        **kwargs: Any,
    ) -> Dict[str, Any]:
        """Images of B cameras.

        Args:
            rays_o, rays_d: [B, H, W, 3]; light_positions: [B, 3].
            bg_color: [B, C] or [B, H, W, C], in place of the background's colours.
            kwargs: the rest of the batch, handed on to the material.
        Returns:
            comp_rgb, comp_rgb_fg, comp_rgb_bg [B, H, W, C], opacity, depth, z_variance [B, H, W, 1];
            in training also each sample's weights, t_points, t_intervals [S, 1], t_dirs, points [S, 3], ray_indices [S]
            and what the geometry gave there; comp_normal [B, H, W, 3] in [0, 1] outside training or where asked for.
        """
        image_shape = rays_o.shape[:3]
        rays_o_flat, rays_d_flat = rays_o.reshape(-1, 3), rays_d.reshape(-1, 3)
        n_rays = rays_o_flat.shape[0]
        ray_indices, t_starts, t_ends = validate_empty_rays(*self._sample(rays_o_flat, rays_d_flat))
        t_points = ((t_starts + t_ends) / 2)[:, None]
        t_dirs = rays_d_flat[ray_indices]
        points = rays_o_flat[ray_indices] + t_dirs * t_points
        image_of_ray = ray_indices // (image_shape[1] * image_shape[2])

        chunk_size = 0 if self.training else self.cfg.eval_chunk_size
        normals, lights = self.material.requires_normal, light_positions[image_of_ray]
        geo_out, rgb = shade_samples(self.geometry, self.material, points, t_dirs, lights, kwargs, normals, chunk_size)
        rgb_bg = background_colors(self.background, rays_d, bg_color).reshape(n_rays, -1).float()

        density = geo_out["density"][:, 0].float()
        weights, _, _ = render_weight_from_density(t_starts, t_ends, density, ray_indices)
        opacity = accumulate_along_rays(weights, None, ray_indices, n_rays)
        depth = accumulate_along_rays(weights, t_points, ray_indices, n_rays)
        rgb_fg = accumulate_along_rays(weights, rgb.to(weights.dtype), ray_indices, n_rays)
        z_variance = depth_variance(weights, t_points, opacity, ray_indices)

        def image(x: Tensor) -> Tensor:
            return x.view(*image_shape, -1)

        out = {
            "comp_rgb": image(rgb_fg + rgb_bg * (1.0 - opacity)),
            "comp_rgb_fg": image(rgb_fg),
            "comp_rgb_bg": image(rgb_bg),
            "opacity": image(opacity),
            "depth": image(depth),
            "z_variance": image(z_variance),
        }
        if self.training:
            out.update(
                weights=weights[:, None],
                t_points=t_points,
                t_intervals=(t_ends - t_starts)[:, None],
                t_dirs=t_dirs,
                ray_indices=ray_indices,
                points=points,
                **geo_out,
            )
        if "normal" in geo_out and (self.cfg.return_comp_normal or not self.training):
            normal = F.normalize(accumulate_along_rays(weights, geo_out["normal"], ray_indices, n_rays), dim=-1)
            out["comp_normal"] = image((normal + 1.0) / 2.0 * opacity)
        if self.training and self.cfg.return_normal_perturb:
            moved = points + torch.randn(points.shape).to(points) * 1e-2
            out["normal_perturb"] = self.geometry(moved, output_normal=True)["normal"]
        return out

    def _sample(self, rays_o: Tensor, rays_d: Tensor) -> RaySamples:
        """rays_o, rays_d [N, 3] -> packed samples."""
        stratified = self.cfg.randomized and self.training

        def density(t_starts: Tensor, t_ends: Tensor, ray: Tensor) -> Tensor:
            return self._density_at(rays_o[ray], rays_d[ray], t_starts, t_ends)

        return ray_samples(
            self.cfg, self.estimator, density, rays_o, rays_d, self.bbox, self.render_step_size, stratified
        )

    @torch.no_grad()
    def _density_at(self, rays_o: Tensor, rays_d: Tensor, t_starts: Tensor, t_ends: Tensor) -> Tensor:
        """Density [S] in the middle of intervals on rays [S, 3], without gradient."""
        points = rays_o + rays_d * ((t_starts + t_ends) / 2)[:, None]
        return chunk_batch(self.geometry.forward_density, self.cfg.eval_chunk_size, points)[:, 0]

    update_step_changes_buffers_alone = True  # of the occupancy grid

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        if self.cfg.estimator != "occgrid" or not self.cfg.grid_prune:
            return
        if self.training and not on_load_weights:
            self.estimator.update_every_n_steps(
                global_step,
                lambda points: self._density_for_grid(points) * self.render_step_size,
                ema_decay=self.cfg.ema_decay,
            )

    @torch.no_grad()
    def _density_for_grid(self, points: Tensor) -> Tensor:
        return chunk_batch(self.geometry.forward_density, self.cfg.eval_chunk_size, points)
