"""Volume rendering of a signed distance field: NeuS (Wang et al. 2021) or VolSDF (Yariv et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

import threestudio
from threestudio.models.background.base import BaseBackground
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.renderers.field_renderer import FieldRenderer
from threestudio.models.renderers.surface_density import annealed_cosine, neus_alpha, volsdf_density
from threestudio.models.renderers.volume_parts import render_volume, volume_samples
from threestudio.ops.volume_rendering import render_weight_from_alpha
from threestudio.utils.errors import UserError
from threestudio.utils.ops import chunk_batch, dot

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
class NeuSVolumeRenderer(FieldRenderer):
    @dataclass
    class Config(FieldRenderer.Config):
        learned_variance_init: float = 0.3  # v: the surface is about exp(-10 v) world units thick at first
        cos_anneal_end_steps: int = 0  # steps over which rays that leave the surface lose their say; 0: they have none
        use_volsdf: bool = False  # density from distance as in VolSDF, in place of NeuS' opacity
        # as nerf-volume-renderer's; importance with use_volsdf only
        estimator: str = "occgrid"

    cfg: Config

    def configure(self, geometry: BaseGeometry, material: BaseMaterial, background: BaseBackground) -> None:
        super().configure(geometry, material, background)
        cfg = self.cfg
        if cfg.cos_anneal_end_steps < 0:
            raise UserError(f"renderer.cos_anneal_end_steps: expected >= 0, got {cfg.cos_anneal_end_steps}")
        if cfg.estimator == "importance" and not cfg.use_volsdf:
            raise UserError("renderer.estimator: importance needs renderer.use_volsdf=true (it samples by density)")
        self.variance = LearnedVariance(cfg.learned_variance_init)
        self.cos_anneal_ratio = 1.0 if cfg.cos_anneal_end_steps == 0 else 0.0

    def forward(
        self,
        rays_o: Tensor,
        rays_d: Tensor,
        light_positions: Tensor,
        bg_color: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
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
        samples = volume_samples(self.sample, rays_o, rays_d)

        def weights_of(geo_out: dict[str, Tensor]) -> Tensor:
            alpha = self._alpha(geo_out, samples.t_dirs, samples.t_intervals)
            return render_weight_from_alpha(alpha[:, 0], samples.ray_indices)[0]

        out, _ = render_volume(
            self, samples, rays_d, light_positions, bg_color, kwargs, weights_of, True, not self.training
        )
        out["inv_std"] = self.variance.inv_std
        return out

    # -------------------------------------------------------------------------- opacity

    def _alpha(self, geo_out: dict[str, Tensor], t_dirs: Tensor, t_intervals: Tensor) -> Tensor:
        """Opacity [S, 1] of samples, from what the geometry says there."""
        sdf = geo_out["sdf"].float()
        if self.cfg.use_volsdf:
            return -torch.expm1(-volsdf_density(sdf, self.variance.volsdf_inv_std) * t_intervals)
        if "normal" not in geo_out:
            raise UserError(
                "renderer neus-volume-renderer: needs normals; expected geometry.normal_type other than null "
                "(or use_volsdf=true)"
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

    @torch.no_grad()
    def interval_density(self, rays_o: Tensor, rays_d: Tensor, t_starts: Tensor, t_ends: Tensor) -> Tensor:
        """Density [S] that gives the intervals their opacity."""
        lengths = (t_ends - t_starts)[:, None]
        points = rays_o + rays_d * ((t_starts + t_ends) / 2)[:, None]
        alpha = self._opacity_without_normal(points, lengths)
        return (-torch.log1p(-alpha.clamp(max=1 - 1e-6)) / lengths.clamp(min=1e-9))[:, 0]

    # ----------------------------------------------------------------------- life cycle

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        if self.cfg.cos_anneal_end_steps > 0:
            self.cos_anneal_ratio = min(1.0, global_step / self.cfg.cos_anneal_end_steps)
        if self.training and not on_load_weights:
            length = self.bbox.new_full((1, 1), self.render_step_size)
            self.update_occupancy(global_step, lambda points: self._opacity_without_normal(points, length))
