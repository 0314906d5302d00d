"""`turboprop-generative-volsdf-renderer`: renders many prompts' fields at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

import threestudio
from threestudio.models.background.base import BaseBackground
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.renderers.base import VolumeRenderer
from threestudio.models.renderers.surface_density import volsdf_density, volsdf_outline
from threestudio.utils.errors import UserError
from threestudio.utils.misc import C
from threestudio.utils.value_checks import Scheduled, check_at_least, check_choice

from .field import Field, forward_differences, points_ahead
from .text_background import TextBackground
from .volsdf import Intervals, PackedSamples, composite, propose_intervals, random_samples, weighty_samples

EIKONAL_AT = ("points", "samples", "rays")
# Curvature radius of the bodies whose outline is asked for, a prop's parts, as a share of the cube's radius. It hardly
# matters: three times as much moves the outline by 0.55 / inv_std.
OUTLINE_CURVATURE = 0.1


class Rays(NamedTuple):
    """R rays of several prompts' cameras."""

    origins: Tensor  # [R, 3]
    directions: Tensor  # [R, 3] unit
    owner: Tensor  # [R] int64, the prompt


@threestudio.register("turboprop-generative-volsdf-renderer")
class GenerativeVolSDFRenderer(VolumeRenderer):
    """VolSDF over a field. A batch holds V views of each of P prompts, prompt by prompt."""

    @dataclass
    class Config(VolumeRenderer.Config):
        num_samples_per_ray: int = 128  # intervals that tile the part of a ray inside the cube
        num_samples_per_ray_importance: int = 64  # further edges where a first pass finds weight; 0 for none
        near_plane: float = 0.1  # world units along the ray
        far_plane: float = 100.0  # world units along the ray
        randomized: bool = True  # shift samples at random while training
        # a = 1 / b of VolSDF's density, in 1 / world units: how sharp a surface is; a number or a schedule
        inv_std: Scheduled = 30.0
        # samples whose estimated blending weight is less are not shaded; what they would add, opacity lacks
        min_weight: float = 1e-4
        eval_chunk_size: int = 16384  # rays at once outside training; bounds the memory of large pictures
        # share of the pictures' gradient that reaches the shape; a number or a schedule
        shape_gradient: Scheduled = 1.0
        eikonal_points: int = 4096  # points a step for the eikonal regulariser; 0: none
        # where it looks: at points of the cube, half of them near the surface; at the shaded samples, however many they
        # are; or at as many of all samples of the rays, shaded or not
        eikonal_at: str = "points"

    cfg: Config
    intervals_key = "num_samples_per_ray"  # of what tiles a ray
    further_key = "num_samples_per_ray_importance"  # of what is put where a first pass finds weight

    def configure(self, geometry: BaseGeometry, material: BaseMaterial, background: BaseBackground) -> None:
        super().configure(geometry, material, background)
        cfg = self.cfg
        for key, least in ((self.intervals_key, 1), (self.further_key, 0), ("eval_chunk_size", 1)):
            check_at_least(f"renderer.{key}", cfg[key], least)
        check_choice("renderer.eikonal_at", cfg.eikonal_at, EIKONAL_AT)
        if not 0 <= cfg.min_weight < 1:
            raise UserError(f"renderer.min_weight: expected at least 0 and less than 1, got {cfg.min_weight:g}")
        if not math.isclose(cfg.radius, geometry.cfg.radius):
            raise UserError(f"renderer.radius: expected geometry.radius ({geometry.cfg.radius:g}), got {cfg.radius:g}")

        self.update_step(0, 0)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        self.shape_gradient = float(C(self.cfg.shape_gradient, epoch, global_step))
        self.inv_std = float(C(self.cfg.inv_std, epoch, global_step))
        if self.inv_std <= 0:
            raise UserError(f"renderer.inv_std: expected more than 0 at every step, got {self.inv_std:g}")

    def outline_level(self) -> float:
        """Signed distance of the surface that pictures show now, world units; see `volsdf_outline`."""
        return volsdf_outline(self.inv_std, OUTLINE_CURVATURE * self.cfg.radius)

    def forward(
        self,
        rays_o: Tensor,  # [B, H, W, 3]
        rays_d: Tensor,  # [B, H, W, 3] unit
        space_cache: Field | None = None,  # of P prompts
        noise: Tensor | None = None,  # [P, Z], with text_embed, in place of a cache
        text_embed: Tensor | None = None,  # [P, T] or [P, N, T]
        bg_color: Tensor | None = None,  # [B, 3] or [B, H, W, 3] in [0, 1], in place of the background
        **kwargs: Any,  # the rest of the batch, for the material
    ) -> dict[str, Any]:
        """Pictures comp_rgb, comp_rgb_fg, comp_rgb_bg, opacity, depth, comp_normal [B, H, W, *].

        In training also sdf_grad [N, 3].
        """
        field = self.geometry.generate_space_cache(noise, text_embed) if space_cache is None else space_cache
        batch, height, width = rays_o.shape[:3]
        views, rest = divmod(batch, field.prompts)
        if rest or not views:
            raise ValueError(f"expected a multiple of {field.prompts} cameras (prompts), got {batch}")
        owner = torch.arange(field.prompts, device=rays_o.device).repeat_interleave(views * height * width)
        lattice = field.lattice(field.space.resolution)
        rays = Rays(rays_o.reshape(-1, 3), rays_d.reshape(-1, 3), owner)
        if self.training:
            intervals = self._intervals(lattice, rays)
            background = self._background(rays_d, text_embed, bg_color)
            pictures, extra = self._render_for_training(field, lattice, intervals, rays)
        else:
            pieces = zip(*(part.split(self.cfg.eval_chunk_size) for part in rays))
            pictures = torch.cat([self._render(field, lattice, Rays(*piece)) for piece in pieces])
            background, extra = self._background(rays_d, text_embed, bg_color), {}
        output = self._assemble(pictures.reshape(batch, height, width, -1), background)
        return {**output, **extra, "inv_std": self.inv_std}

    def _propose(self, lattice: Tensor, rays: Rays) -> PackedSamples:
        """The samples that are worth shading."""
        return weighty_samples(self._intervals(lattice, rays), self.cfg.min_weight)

    def _intervals(self, lattice: Tensor, rays: Rays) -> Intervals:
        cfg = self.cfg
        return propose_intervals(
            lattice,
            *rays,
            radius=cfg.radius,
            inv_std=self.inv_std,
            num_samples=cfg[self.intervals_key],
            num_importance=cfg[self.further_key],
            near=cfg.near_plane,
            far=cfg.far_plane,
            randomized=cfg.randomized and self.training,
        )

    def _background(self, rays_d: Tensor, text_embed: Tensor | None, bg_color: Tensor | None) -> Tensor:
        """Colours behind rays [B, H, W, 3] -> [B, H, W, 3]."""
        background = self.background_of(rays_d, text_embed) if bg_color is None else bg_color
        return background[:, None, None].expand_as(rays_d) if background.ndim == 2 else background

    def background_of(
        self,
        dirs: Tensor,  # [P * V, H, W, 3] unit, prompt by prompt
        text_embed: Tensor | None,  # [P, T] or [P, N, T]; None where the background reads no text
    ) -> Tensor:
        """The background's own colours behind rays [P * V, H, W, 3]."""
        if isinstance(self.background, TextBackground):
            return self.background(dirs=dirs, text_embed=text_embed)
        return self.background(dirs=dirs)

    def _render(self, field: Field, lattice: Tensor, rays: Rays) -> Tensor:
        """Colour, depth, normal and opacity of R rays: [R, 8]."""
        samples = self._propose(lattice, rays)
        points, owner = samples.points(rays.origins, rays.directions), rays.owner[samples.ray]
        features = field.features(points, owner)
        distance = field.heads.signed_distance(points, features, owner)
        gradient = field.gradient(points, owner, self.geometry.cfg.finite_difference_eps, distance)
        values = self._values(field, samples, points, features, rays)
        values = torch.cat([values, torch.nn.functional.normalize(gradient, dim=-1)], -1)
        return composite(samples, volsdf_density(distance, self.inv_std), values, len(rays.origins))

    def _render_for_training(
        self, field: Field, lattice: Tensor, intervals: Intervals, rays: Rays
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Colour, depth and opacity of R rays [R, 5]; and sdf_grad [N, 3], if the eikonal regulariser is asked for."""
        cfg, epsilon = self.cfg, self.geometry.cfg.finite_difference_eps
        samples = weighty_samples(intervals, cfg.min_weight)
        points, owner = samples.points(rays.origins, rays.directions), rays.owner[samples.ray]
        at_samples = cfg.eikonal_at == "samples" and len(points) > 0
        queries = [(points, owner)]
        if cfg.eikonal_points:
            centers, owners = (points, owner) if at_samples else self._eikonal_points(lattice, intervals, rays)
            ahead = points_ahead(centers, epsilon)
            queries += [] if at_samples else [(centers, owners)]
            owners_ahead = owners.repeat_interleave(3)
            queries.append((ahead, owners_ahead))
        features = field.features_of(queries)
        distance = field.heads.signed_distance(points, features[0], owner)
        extra = {}
        if cfg.eikonal_points:
            at_centers = distance if at_samples else field.heads.signed_distance(centers, features[1], owners)
            at_ahead = field.heads.signed_distance(ahead, features[-1], owners_ahead)
            extra["sdf_grad"] = forward_differences(at_centers, at_ahead, epsilon)
        # Grey on grey, the first gradients would rather hide the shape than colour it: a schedule may let colours go
        # first.
        shown = distance.detach() + self.shape_gradient * (distance - distance.detach())
        values = self._values(field, samples, points, features[0], rays)
        return composite(samples, volsdf_density(shown, self.inv_std), values, len(rays.origins)), extra

    def _values(self, field: Field, samples: PackedSamples, points: Tensor, features: Tensor, rays: Rays) -> Tensor:
        """Colour and depth of samples [M, 4] at points [M, 3] with features [M, F]."""
        logits = field.heads.color_logits(features, rays.owner[samples.ray])
        directions = rays.directions[samples.ray]
        color = self.material(features=logits, viewdirs=directions, positions=points)
        return torch.cat([color, samples.middle[:, None]], -1)

    def _assemble(self, pictures: Tensor, background: Tensor) -> dict[str, Any]:
        """pictures [B, H, W, C] of rays and what is behind them [B, H, W, 3] -> images by threestudio's names."""
        color, depth, opacity = pictures[..., :3], pictures[..., 3:4], pictures[..., -1:]
        output = {
            "comp_rgb": color + background * (1 - opacity),
            "comp_rgb_fg": color,
            "comp_rgb_bg": background,
            "opacity": opacity,
            "depth": depth,
        }
        if not self.training:
            normal = torch.nn.functional.normalize(pictures[..., 4:7], dim=-1)
            output["comp_normal"] = (normal + 1) / 2 * opacity
        return output

    def _eikonal_points(self, lattice: Tensor, intervals: Intervals, rays: Rays) -> tuple[Tensor, Tensor]:
        """Random samples of rays, or points of the cube and near the surfaces, and their prompts: [N, 3], [N].

        Near: random lattice cells less than three standard deviations of the density from the surface.
        """
        cfg, device = self.cfg, lattice.device
        if cfg.eikonal_at == "rays" and len(intervals.ray) > 0:
            drawn = random_samples(intervals, cfg.eikonal_points)
            return drawn.points(rays.origins, rays.directions), rays.owner[drawn.ray]
        half = cfg.eikonal_points // 2
        resolution = lattice.shape[-1]
        close = torch.nonzero(lattice.reshape(-1).abs() < 3 / self.inv_std).squeeze(1)
        anywhere = torch.randint(lattice.numel(), (cfg.eikonal_points,), device=device)
        if len(close):
            anywhere[:half] = close[torch.randint(len(close), (half,), device=device)]
        size = resolution**3
        owner, cell = anywhere // size, anywhere % size
        index = torch.stack([cell % resolution, cell // resolution % resolution, cell // resolution**2], -1)
        points = (index + torch.rand(len(index), 3, device=device)) / resolution * 2 - 1
        return (points * cfg.radius).to(lattice.dtype), owner
