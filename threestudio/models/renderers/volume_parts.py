"""What renderers of volumes share: importance samples of rays, shading of samples, the background behind them."""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Tuple

import torch
from torch import Tensor

from threestudio.models.background.base import BaseBackground
from threestudio.models.estimators import ImportanceEstimator
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.materials.base import BaseMaterial
from threestudio.ops.ray_sampling import RaySamples, ray_aabb_intersect
from threestudio.ops.volume_rendering import accumulate_along_rays
from threestudio.utils.ops import chunk_batch

IntervalDensity = Callable[[Tensor, Tensor, Tensor], Tensor]  # t_starts, t_ends [S], ray [S] -> density [S]


def ray_samples(
    cfg: Any,  # a renderer's, with the keys of sampling
    estimator: Any,  # that cfg.estimator names
    density: IntervalDensity,
    rays_o: Tensor,  # [N, 3]
    rays_d: Tensor,  # [N, 3]
    bbox: Tensor,  # [2, 3]
    render_step_size: float,  # world units
    stratified: bool,
) -> RaySamples:
    """Packed samples by the occupancy grid, or where coarse ones found matter."""
    if cfg.estimator == "occgrid":
        prune = cfg.grid_prune and cfg.prune_alpha_threshold  # upstream's rule: without grid_prune nothing is dropped
        return estimator.sampling(
            rays_o,
            rays_d,
            sigma_fn=density if prune else None,
            near_plane=cfg.near_plane,
            far_plane=cfg.far_plane,
            render_step_size=render_step_size,
            early_stop_eps=1e-4 if prune else 0.0,
            alpha_thre=0.01 if prune else 0.0,
            stratified=stratified,
        )
    # Upstream's roles of the two keys, whatever their names suggest: the proposal has num_samples_per_ray_importance.
    planes, coarse, fine = (cfg.near_plane, cfg.far_plane), cfg.num_samples_per_ray_importance, cfg.num_samples_per_ray
    return importance_samples(estimator, density, rays_o, rays_d, bbox, planes, coarse, fine, stratified)


def importance_samples(
    estimator: ImportanceEstimator,
    density: IntervalDensity,
    rays_o: Tensor,  # [N, 3]
    rays_d: Tensor,  # [N, 3]
    bbox: Tensor,  # [2, 3]
    planes: Tuple[float, float],  # nearest and farthest sample
    coarse: int,  # equal intervals of a ray that density is asked in
    fine: int,  # intervals of a ray that are put where it was found
    stratified: bool,
) -> RaySamples:
    """Packed samples, the coarse and the fine ones together; rays that miss the box have none."""
    near, far, hit = ray_aabb_intersect(rays_o, rays_d, bbox, *planes)
    ray = hit.nonzero()[:, 0]

    def proposal(t_starts: Tensor, t_ends: Tensor) -> Tensor:
        which = ray[:, None].expand_as(t_starts).reshape(-1)
        return density(t_starts.reshape(-1), t_ends.reshape(-1), which)

    t_starts, t_ends = estimator.sampling(
        [proposal], [coarse], fine, ray.shape[0], near[ray], far[ray], "uniform", stratified
    )
    return RaySamples(ray.repeat_interleave(t_starts.shape[1]), t_starts.reshape(-1), t_ends.reshape(-1))


def depth_variance(
    weights: Tensor,  # [S], of packed samples
    t_points: Tensor,  # [S, 1], distance along the ray, world units
    opacity: Tensor,  # [N, 1], the rays' sums of weights
    ray_indices: Tensor,  # [S], sorted
) -> Tensor:
    """Variance of the depth of each ray's matter [N, 1], world units squared; 0 where a ray is less than half opaque.

    HiFA (Zhu and Zhuang 2023, arXiv 2305.18766), its z-variance: the weights are divided by their sum. Without that a
    ray could also lower its variance by being empty (threestudio, pull request 367).
    """
    n_rays = opacity.shape[0]
    shares = weights / opacity.clamp(min=1e-5)[ray_indices, 0]
    mean = accumulate_along_rays(shares, t_points, ray_indices, n_rays)
    variance = accumulate_along_rays(shares, (t_points - mean[ray_indices]) ** 2, ray_indices, n_rays)
    return variance * (opacity > 0.5)


def shade_samples(
    geometry: BaseGeometry,
    material: BaseMaterial,
    points: Tensor,  # [S, 3]
    t_dirs: Tensor,  # [S, 3]
    light_positions: Tensor,  # [S, 3]
    options: Dict[str, Any],  # the rest of the batch, for the material
    output_normal: bool,
    chunk_size: int,  # points at once; 0: all
) -> Tuple[Dict[str, Tensor], Tensor]:
    """What the geometry says at points, and the material's colours [S, C]."""

    def query(points: Tensor, t_dirs: Tensor, light_positions: Tensor) -> tuple:
        geo_out = geometry(points, output_normal=output_normal)
        rgb = material(viewdirs=t_dirs, positions=points, light_positions=light_positions, **geo_out, **options)
        return geo_out, rgb

    return chunk_batch(query, chunk_size, points, t_dirs, light_positions)


def background_colors(
    background: BaseBackground,
    rays_d: Tensor,  # [B, H, W, 3]
    bg_color: Optional[Tensor],  # [B, C] or [B, H, W, C], in the background's place
) -> Tensor:
    """[B, H, W, C]"""
    if bg_color is None:
        return background(dirs=rays_d)
    plain = bg_color[:, None, None, :] if bg_color.ndim == 2 else bg_color
    return torch.broadcast_to(plain, (*rays_d.shape[:3], plain.shape[-1]))
