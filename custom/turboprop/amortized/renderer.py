"""`turboprop-generative-volsdf-renderer`: renders many prompts' fields at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, Optional

import threestudio
import torch
from threestudio.models.background.base import BaseBackground
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.renderers.base import VolumeRenderer
from threestudio.utils.misc import C
from torch import Tensor

from .field import Field, SpaceCache
from .volsdf import PackedSamples, composite, propose_samples, volsdf_density


@threestudio.register("turboprop-generative-volsdf-renderer")
class GenerativeVolSDFRenderer(VolumeRenderer):
    """VolSDF over a SpaceCache. A batch holds V views of each of P prompts, prompt by prompt."""

    @dataclass
    class Config(VolumeRenderer.Config):
        num_samples_per_ray: int = 128  # intervals that tile the part of a ray inside the cube
        num_samples_per_ray_importance: int = 64  # further edges where a first pass finds weight; 0 for none
        near_plane: float = 0.1  # world units along the ray
        far_plane: float = 100.0  # world units along the ray
        randomized: bool = True  # shift samples at random while training
        # a = 1 / b of VolSDF's density, in 1 / world units: how sharp a surface is; a number or a schedule
        inv_std: float = 30.0
        # samples whose estimated blending weight is less are not shaded; what they would add, opacity lacks
        min_weight: float = 1e-4
        eval_chunk_size: int = 16384  # rays at once outside training; bounds the memory of large pictures
        shape_gradient: float = 1.0  # share of the pictures' gradient that reaches the shape; a number or a schedule
        eikonal_points: int = 4096  # points a step for the eikonal regulariser, half of them near the surface

    cfg: Config
    intervals_key = "num_samples_per_ray"  # of what tiles a ray
    further_key = "num_samples_per_ray_importance"  # of what is put where a first pass finds weight

    def configure(self, geometry: BaseGeometry, material: BaseMaterial, background: BaseBackground) -> None:
        super().configure(geometry, material, background)
        cfg = self.cfg
        for key, least in ((self.intervals_key, 1), (self.further_key, 0), ("eval_chunk_size", 1)):
            if cfg[key] < least:
                raise ValueError(f"renderer.{key}: expected at least {least}, got {cfg[key]}")
        if not 0 <= cfg.min_weight < 1:
            raise ValueError(f"renderer.min_weight: expected at least 0 and less than 1, got {cfg.min_weight:g}")
        if not math.isclose(cfg.radius, geometry.cfg.radius):
            raise ValueError(
                f"renderer.radius: expected geometry.radius ({geometry.cfg.radius:g}), got {cfg.radius:g}"
            )

        self.update_step(0, 0)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        self.shape_gradient = float(C(self.cfg.shape_gradient, epoch, global_step))
        self.inv_std = float(C(self.cfg.inv_std, epoch, global_step))
        if self.inv_std <= 0:
            raise ValueError(f"renderer.inv_std: expected more than 0 at every step, got {self.inv_std:g}")

    def forward(
        self,
        rays_o: Tensor,  # [B, H, W, 3]
        rays_d: Tensor,  # [B, H, W, 3] unit
        space_cache: Optional[SpaceCache] = None,  # of P prompts
        noise: Optional[Tensor] = None,  # [P, Z], with text_embed, in place of a cache
        text_embed: Optional[Tensor] = None,  # [P, T]
        bg_color: Optional[Tensor] = None,  # [B, 3] or [B, H, W, 3] in [0, 1], in place of the background
        **kwargs: Any,  # the rest of the batch, for the material
    ) -> Dict[str, Any]:
        """Pictures comp_rgb, comp_rgb_fg, comp_rgb_bg, opacity, depth, comp_normal [B, H, W, *]; in training also sdf_grad [N, 3]."""
        if space_cache is None:
            space_cache = self.geometry.generate_space_cache(noise, text_embed)
        batch, height, width = rays_o.shape[:3]
        views, rest = divmod(batch, space_cache.prompts)
        if rest or not views:
            raise ValueError(f"expected a multiple of {space_cache.prompts} cameras (prompts), got {batch}")
        field = self.geometry.field_of(space_cache)
        owner = torch.arange(space_cache.prompts, device=rays_o.device).repeat_interleave(views * height * width)
        lattice = field.lattice(space_cache.resolution)
        origins, directions = rays_o.reshape(-1, 3), rays_d.reshape(-1, 3)
        chunk = len(origins) if self.training else self.cfg.eval_chunk_size
        pictures = torch.cat(
            [
                self._render_rays(field, lattice, o, d, w)
                for o, d, w in zip(origins.split(chunk), directions.split(chunk), owner.split(chunk))
            ]
        ).reshape(batch, height, width, -1)
        output = self._assemble(pictures, rays_d, bg_color)
        if self.training and self.cfg.eikonal_points:
            output["sdf_grad"] = self._eikonal_gradients(field, lattice)
        output["inv_std"] = self.inv_std
        return output

    def _render_rays(self, field: Field, lattice: Tensor, origins: Tensor, directions: Tensor, owner: Tensor) -> Tensor:
        """Rays [R, 3] of prompts owner [R] -> [R, 3 colour + 1 depth (+ 3 normal) + 1 opacity]."""
        cfg = self.cfg
        samples = propose_samples(
            lattice,
            origins,
            directions,
            owner,
            radius=cfg.radius,
            inv_std=self.inv_std,
            num_samples=cfg[self.intervals_key],
            num_importance=cfg[self.further_key],
            near=cfg.near_plane,
            far=cfg.far_plane,
            min_weight=cfg.min_weight,
            randomized=cfg.randomized and self.training,
        )
        density, values = self._shade(field, samples, origins, directions, owner)
        return composite(samples, density, values, len(origins))

    def _shade(
        self, field: Field, samples: PackedSamples, origins: Tensor, directions: Tensor, owner: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Density [M] and colour, depth (and normal) [M, C] of packed samples."""
        o, d, who = origins[samples.ray], directions[samples.ray], owner[samples.ray]
        points = o + samples.middle[:, None] * d
        features = field.features(points, who)
        distance = field.heads.signed_distance(points, features)
        color = self.material(features=field.heads.color(features), viewdirs=d, positions=points)
        values = [color, samples.middle[:, None]]
        if not self.training:
            gradient = field.gradient(points, who, self.geometry.cfg.finite_difference_eps, distance)
            values.append(torch.nn.functional.normalize(gradient, dim=-1))
        # Grey on grey, the first gradients would rather hide the shape than colour it: a schedule lets colours go first.
        distance = distance.detach() + self.shape_gradient * (distance - distance.detach())
        return volsdf_density(distance, self.inv_std), torch.cat(values, -1)

    def _assemble(self, pictures: Tensor, rays_d: Tensor, bg_color: Optional[Tensor]) -> Dict[str, Any]:
        """pictures [B, H, W, C] of `_render_rays` -> images by threestudio's names."""
        color, depth, opacity = pictures[..., :3], pictures[..., 3:4], pictures[..., -1:]
        background = self.background(dirs=rays_d) if bg_color is None else bg_color
        if background.ndim == 2:
            background = background[:, None, None].expand_as(color)
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

    def _eikonal_gradients(self, field: Field, lattice: Tensor) -> Tensor:
        """Gradients of the signed distance at random points of the cube and near the surfaces: [N, 3].

        Near: random lattice cells less than three standard deviations of the density from the surface.
        """
        cfg, device = self.cfg, lattice.device
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
        return field.gradient(points * cfg.radius, owner, self.geometry.cfg.finite_difference_eps)


@threestudio.register("generative-space-volsdf-volume-renderer")
class ScaleDreamerVolSDFRenderer(GenerativeVolSDFRenderer):
    """The renderer under ScaleDreamer's name, where the two keys of samples have each other's roles, as there.

    num_samples_per_ray_importance intervals tile the ray, and num_samples_per_ray further edges follow the weight.
    """

    @dataclass
    class Config(GenerativeVolSDFRenderer.Config):
        num_samples_per_ray: int = 64  # further edges where a first pass finds weight; 0 for none
        num_samples_per_ray_importance: int = 128  # intervals that tile the part of a ray inside the cube

    cfg: Config
    intervals_key = "num_samples_per_ray_importance"
    further_key = "num_samples_per_ray"
