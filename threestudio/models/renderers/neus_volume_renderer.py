"""Volume rendering of a signed distance field: NeuS (Wang et al. 2021) or VolSDF (Yariv et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Optional

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.models.background.base import BaseBackground
from threestudio.models.estimators import ImportanceEstimator, OccupancyGridEstimator
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.renderers.base import VolumeRenderer
from threestudio.models.renderers.surface_density import annealed_cosine, neus_alpha, volsdf_density
from threestudio.models.renderers.volume_parts import background_colors, ray_samples, shade_samples
from threestudio.ops.ray_sampling import RaySamples
from threestudio.ops.volume_rendering import accumulate_along_rays, render_weight_from_alpha
from threestudio.utils.errors import UserError
from threestudio.utils.ops import chunk_batch, dot, validate_empty_rays

# VolSDF's density is 1 / b inside: a larger one makes a step that is all or nothing, which has no gradient.
LARGEST_INVERSE_SCALE = 80.0  # threestudio's


class LearnedVariance(nn.Module):
    """The inverse standard deviation exp(10 v) of the surface's thickness, v learned."""

    def __init__(self, init: float) -> None:
        super().__init__()
        self._inv_std = nn.Parameter(torch.tensor(float(init)))

    @property
    def inv_std(self) -> Tensor:  # []
        return torch.exp(self._inv_std * 10.0).clamp(1e-6, 1e6)

    @property
    def volsdf_inv_std(self) -> Tensor:  # []
        """The inverse scale a = 1 / b of VolSDF's density."""
        return self.inv_std.clamp(0.0, LARGEST_INVERSE_SCALE)


@threestudio.register("neus-volume-renderer")
class NeuSVolumeRenderer(VolumeRenderer):
    @dataclass
    class Config(VolumeRenderer.Config):
        num_samples_per_ray: int = 512  # occgrid: steps over the cube's diagonal; importance: resampled ones of a ray
        randomized: bool = True  # jitter the samples while training
        eval_chunk_size: int = 160000  # points per query outside training
        learned_variance_init: float = 0.3  # v: the surface is about exp(-10 v) world units thick at first
        cos_anneal_end_steps: int = 0  # steps over which rays that leave the surface lose their say; 0: they have none
        use_volsdf: bool = False  # density from distance as in VolSDF, in place of NeuS' opacity
        near_plane: float = 0.0  # nearest sample, world units
        far_plane: float = 1e10  # farthest sample
        estimator: str = (
            "occgrid"  # occgrid: occupancy grid; importance: coarse samples, then resampled (use_volsdf only)
        )
        ema_decay: float = 0.95  # occgrid: share of a cell's value that is left by its next update
        grid_prune: bool = True  # occgrid: skip cells found empty; false: every sample in the cube is shaded
        prune_alpha_threshold: bool = True  # occgrid with grid_prune: skip samples of opacity < 0.01
        num_samples_per_ray_importance: int = 64  # importance: equal intervals of a ray, shaded with the others

    cfg: Config

    def configure(self, geometry: BaseGeometry, material: BaseMaterial, background: BaseBackground) -> None:
        super().configure(geometry, material, background)
        cfg = self.cfg
        for key in ("num_samples_per_ray", "num_samples_per_ray_importance"):
            if cfg[key] < 1:
                raise UserError(f"renderer.{key}: expected >= 1, got {cfg[key]}")
        if cfg.cos_anneal_end_steps < 0:
            raise UserError(f"renderer.cos_anneal_end_steps: expected >= 0, got {cfg.cos_anneal_end_steps}")
        self.variance = LearnedVariance(cfg.learned_variance_init)
        if cfg.estimator == "occgrid":
            self.estimator = OccupancyGridEstimator(self.bbox, resolution=32)
            if not cfg.grid_prune:
                self.estimator.fill()
        elif cfg.estimator == "importance":
            if not cfg.use_volsdf:
                raise UserError("renderer.estimator: importance needs renderer.use_volsdf=true (it samples by density)")
            self.estimator = ImportanceEstimator()
        else:
            raise UserError(f"renderer.estimator: expected occgrid or importance, got {cfg.estimator!r}")
        self.render_step_size = 1.732 * 2 * cfg.radius / cfg.num_samples_per_ray  # the cube's diagonal in steps
        self.cos_anneal_ratio = 1.0 if cfg.cos_anneal_end_steps == 0 else 0.0

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
            comp_rgb, comp_rgb_fg, comp_rgb_bg [B, H, W, C], opacity, depth [B, H, W, 1]; in training also each sample's
            weights, t_points, t_intervals [S, 1], t_dirs, points [S, 3], ray_indices [S] and what the geometry gave
            there (sdf, sdf_grad, normal, features); outside training comp_normal [B, H, W, 3] in [0, 1]; inv_std [].
        """
        image_shape = rays_o.shape[:3]
        rays_o_flat, rays_d_flat = rays_o.reshape(-1, 3), rays_d.reshape(-1, 3)
        n_rays = rays_o_flat.shape[0]
        ray_indices, t_starts, t_ends = validate_empty_rays(*self._sample(rays_o_flat, rays_d_flat))
        t_points, t_intervals = ((t_starts + t_ends) / 2)[:, None], (t_ends - t_starts)[:, None]
        t_dirs = rays_d_flat[ray_indices]
        points = rays_o_flat[ray_indices] + t_dirs * t_points
        image_of_ray = ray_indices // (image_shape[1] * image_shape[2])

        chunk_size, lights = 0 if self.training else self.cfg.eval_chunk_size, light_positions[image_of_ray]
        geo_out, rgb = shade_samples(self.geometry, self.material, points, t_dirs, lights, kwargs, True, chunk_size)
        rgb_bg = background_colors(self.background, rays_d, bg_color).reshape(n_rays, -1).float()

        alpha = self._alpha(geo_out, t_dirs, t_intervals)
        weights, _ = render_weight_from_alpha(alpha[:, 0], ray_indices)
        opacity = accumulate_along_rays(weights, None, ray_indices, n_rays)
        depth = accumulate_along_rays(weights, t_points, ray_indices, n_rays)
        rgb_fg = accumulate_along_rays(weights, rgb.to(weights.dtype), ray_indices, n_rays)

        def image(x: Tensor) -> Tensor:
            return x.view(*image_shape, -1)

        out = {
            "comp_rgb": image(rgb_fg + rgb_bg * (1.0 - opacity)),
            "comp_rgb_fg": image(rgb_fg),
            "comp_rgb_bg": image(rgb_bg),
            "opacity": image(opacity),
            "depth": image(depth),
        }
        if self.training:
            out.update(
                weights=weights[:, None],
                t_points=t_points,
                t_intervals=t_intervals,
                t_dirs=t_dirs,
                ray_indices=ray_indices,
                points=points,
                **geo_out,
            )
        elif "normal" in geo_out:
            normal = F.normalize(accumulate_along_rays(weights, geo_out["normal"], ray_indices, n_rays), dim=-1)
            out["comp_normal"] = image((normal + 1.0) / 2.0 * opacity)
        out["inv_std"] = self.variance.inv_std
        return out

    # -------------------------------------------------------------------------- opacity

    def _alpha(self, geo_out: Dict[str, Tensor], t_dirs: Tensor, t_intervals: Tensor) -> Tensor:
        """Opacity [S, 1] of samples, from what the geometry says there."""
        sdf = geo_out["sdf"].float()
        if self.cfg.use_volsdf:
            return -torch.expm1(-volsdf_density(sdf, self.variance.volsdf_inv_std) * t_intervals)
        if "normal" not in geo_out:
            raise UserError(
                "renderer neus-volume-renderer: needs normals; expected geometry.normal_type other than null (or use_volsdf=true)"
            )
        cosine = annealed_cosine(dot(t_dirs, geo_out["normal"].float()), self.cos_anneal_ratio)
        return neus_alpha(sdf, cosine, t_intervals, self.variance.inv_std)

    @torch.no_grad()
    def _opacity_without_normal(self, points: Tensor, lengths: Tensor) -> Tensor:
        """Opacity [S, 1] at points [S, 3] of intervals [S, 1], the ray taken to meet the surface head-on: the most
        that there can be."""
        sdf = chunk_batch(self.geometry.forward_sdf, self.cfg.eval_chunk_size, points).float()
        if self.cfg.use_volsdf:
            return -torch.expm1(-volsdf_density(sdf, self.variance.volsdf_inv_std) * lengths)
        return neus_alpha(sdf, -torch.ones_like(sdf), lengths, self.variance.inv_std)

    # ------------------------------------------------------------------------- sampling

    def _sample(self, rays_o: Tensor, rays_d: Tensor) -> RaySamples:
        """rays_o, rays_d [N, 3] -> packed samples."""
        stratified = self.cfg.randomized and self.training

        def density(t_starts: Tensor, t_ends: Tensor, ray: Tensor) -> Tensor:
            """Density [S] that gives the intervals [S] their opacity."""
            lengths = (t_ends - t_starts)[:, None]
            points = rays_o[ray] + rays_d[ray] * ((t_starts + t_ends) / 2)[:, None]
            alpha = self._opacity_without_normal(points, lengths)
            return (-torch.log1p(-alpha.clamp(max=1 - 1e-6)) / lengths.clamp(min=1e-9))[:, 0]

        return ray_samples(
            self.cfg, self.estimator, density, rays_o, rays_d, self.bbox, self.render_step_size, stratified
        )

    # ----------------------------------------------------------------------- life cycle

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        if self.cfg.cos_anneal_end_steps > 0:
            self.cos_anneal_ratio = min(1.0, global_step / self.cfg.cos_anneal_end_steps)
        if self.cfg.estimator != "occgrid" or not self.cfg.grid_prune:
            return
        if self.training and not on_load_weights:
            length = self.bbox.new_full((1, 1), self.render_step_size)
            self.estimator.update_every_n_steps(
                global_step,
                lambda points: self._opacity_without_normal(points, length),
                ema_decay=self.cfg.ema_decay,
            )
