"""What renderers of volumes share: samples of rays, their shading, and the pictures that they add up to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from threestudio.models.background.base import BaseBackground
from threestudio.models.estimators import ImportanceEstimator, OccupancyGridEstimator
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.renderers.base import VolumeRenderer
from threestudio.ops.ray_sampling import RaySamples, ray_aabb_intersect
from threestudio.ops.volume_rendering import accumulate_along_rays
from threestudio.utils.errors import UserError
from threestudio.utils.ops import chunk_batch, validate_empty_rays

IntervalDensity = Callable[[Tensor, Tensor, Tensor], Tensor]  # t_starts, t_ends [S], ray [S] -> density [S]


def estimator_of(cfg: Any, bbox: Tensor) -> OccupancyGridEstimator | ImportanceEstimator:
    """The estimator that a renderer's cfg.estimator names, for the box [2, 3]. Raises UserError for a wrong key."""
    for key in ("num_samples_per_ray", "num_samples_per_ray_importance"):
        if cfg[key] < 1:
            raise UserError(f"renderer.{key}: expected >= 1, got {cfg[key]}")
    if cfg.estimator == "importance":
        return ImportanceEstimator()
    if cfg.estimator != "occgrid":
        raise UserError(f"renderer.estimator: expected occgrid or importance, got {cfg.estimator!r}")
    estimator = OccupancyGridEstimator(bbox, resolution=32)
    if not cfg.grid_prune:
        estimator.fill()
    return estimator


def importance_samples(
    estimator: ImportanceEstimator,
    density: IntervalDensity,
    rays_o: Tensor,  # [N, 3]
    rays_d: Tensor,  # [N, 3]
    bbox: Tensor,  # [2, 3]
    planes: tuple[float, float],  # nearest and farthest sample
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


class VolumeSamples(NamedTuple):
    """S samples on the N = B H W rays of B pictures, each in the middle of its interval."""

    image_shape: tuple[int, int, int]  # B, H, W
    ray_indices: Tensor  # [S], sorted
    t_starts: Tensor  # [S], distances along the ray, world units
    t_ends: Tensor  # [S]
    t_points: Tensor  # [S, 1]
    t_dirs: Tensor  # [S, 3]
    points: Tensor  # [S, 3]

    @property
    def t_intervals(self) -> Tensor:  # [S, 1]
        return (self.t_ends - self.t_starts)[:, None]

    @property
    def view(self) -> Tensor:  # [S], the picture of each sample
        return self.ray_indices // (self.image_shape[1] * self.image_shape[2])

    def sum_along_rays(self, weights: Tensor, values: Tensor | None) -> Tensor:  # [S], [S, C] -> [N, C]
        batch, height, width = self.image_shape
        return accumulate_along_rays(weights, values, self.ray_indices, batch * height * width)

    def image(self, of_rays: Tensor) -> Tensor:  # [N, C] -> [B, H, W, C]
        return of_rays.view(*self.image_shape, -1)


def volume_samples(
    sample: Callable[[Tensor, Tensor], RaySamples],  # rays_o, rays_d [N, 3] -> packed samples
    rays_o: Tensor,  # [B, H, W, 3]
    rays_d: Tensor,  # [B, H, W, 3]
) -> VolumeSamples:
    """Samples of the rays; one of no length where there is none at all."""
    origins, directions = rays_o.reshape(-1, 3), rays_d.reshape(-1, 3)
    ray_indices, t_starts, t_ends = validate_empty_rays(*sample(origins, directions))
    t_points, t_dirs = ((t_starts + t_ends) / 2)[:, None], directions[ray_indices]
    points = origins[ray_indices] + t_dirs * t_points
    return VolumeSamples(tuple(rays_o.shape[:3]), ray_indices, t_starts, t_ends, t_points, t_dirs, points)


def render_volume(
    renderer: VolumeRenderer,  # whose geometry, material and background are seen
    samples: VolumeSamples,
    rays_d: Tensor,  # [B, H, W, 3]
    light_positions: Tensor,  # [B, 3]
    bg_color: Tensor | None,  # [B, C] or [B, H, W, C], in the background's place
    options: dict[str, Any],  # the rest of the batch, for the material
    weights_of: Callable[[dict[str, Tensor]], Tensor],  # what the geometry says at the samples -> weights [S]
    output_normal: bool,  # whether the geometry is asked for normals
    comp_normal: bool,  # whether they become a picture, where there are any
) -> tuple[dict[str, Tensor], Tensor]:
    """Pictures [B, H, W, C] by threestudio's names, in training also what each sample has; and the weights [S]."""
    lights, chunk_size = light_positions[samples.view], 0 if renderer.training else renderer.cfg.eval_chunk_size
    geo_out, rgb = shade_samples(
        renderer.geometry, renderer.material, samples.points, samples.t_dirs, lights, options, output_normal, chunk_size
    )
    rgb_bg = background_colors(renderer.background, rays_d, bg_color).flatten(0, 2).float()
    weights = weights_of(geo_out)
    opacity = samples.sum_along_rays(weights, None)
    depth = samples.sum_along_rays(weights, samples.t_points)
    rgb_fg = samples.sum_along_rays(weights, rgb.to(weights.dtype))
    out = {
        "comp_rgb": samples.image(rgb_fg + rgb_bg * (1.0 - opacity)),
        "comp_rgb_fg": samples.image(rgb_fg),
        "comp_rgb_bg": samples.image(rgb_bg),
        "opacity": samples.image(opacity),
        "depth": samples.image(depth),
    }
    if renderer.training:
        names = ("t_points", "t_intervals", "t_dirs", "ray_indices", "points")
        out.update(weights=weights[:, None], **{name: getattr(samples, name) for name in names}, **geo_out)
    if comp_normal and "normal" in geo_out:
        normal = F.normalize(samples.sum_along_rays(weights, geo_out["normal"]), dim=-1)
        out["comp_normal"] = samples.image((normal + 1.0) / 2.0 * opacity)
    return out, weights


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
    options: dict[str, Any],  # the rest of the batch, for the material
    output_normal: bool,
    chunk_size: int,  # points at once; 0: all
) -> tuple[dict[str, Tensor], Tensor]:
    """What the geometry says at points, and the material's colours [S, C]. Raises UserError where the material needs
    normals, which the field is set not to have."""

    def query(points: Tensor, t_dirs: Tensor, light_positions: Tensor) -> tuple:
        geo_out = geometry(points, output_normal=output_normal)
        if material.requires_normal and "shading_normal" not in geo_out:
            raise UserError(
                "system.geometry.normal_type: the material needs normals; expected one that gives some, such as "
                "analytic, got none"
            )
        rgb = material(viewdirs=t_dirs, positions=points, light_positions=light_positions, **geo_out, **options)
        return geo_out, rgb

    return chunk_batch(query, chunk_size, points, t_dirs, light_positions)


def background_colors(
    background: BaseBackground,
    rays_d: Tensor,  # [B, H, W, 3]
    bg_color: Tensor | None,  # [B, C] or [B, H, W, C], in the background's place
) -> Tensor:
    """[B, H, W, C]"""
    if bg_color is None:
        return background(dirs=rays_d)
    plain = bg_color[:, None, None, :] if bg_color.ndim == 2 else bg_color
    return torch.broadcast_to(plain, (*rays_d.shape[:3], plain.shape[-1]))
