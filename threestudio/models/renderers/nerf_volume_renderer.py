"""Volume rendering of a density field (NeRF), with empty space skipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.models.background.base import BaseBackground
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.renderers.field_renderer import FieldRenderer
from threestudio.models.renderers.volume_parts import depth_variance, render_volume, volume_samples
from threestudio.ops.volume_rendering import render_weight_from_density
from threestudio.utils.devices import sent
from threestudio.utils.errors import UserError
from threestudio.utils.ops import chunk_batch


@threestudio.register("nerf-volume-renderer")
class NeRFVolumeRenderer(FieldRenderer):
    @dataclass
    class Config(FieldRenderer.Config):
        return_comp_normal: bool = False  # composited normals in training too
        return_normal_perturb: bool = False  # normals at points moved a little, for smoothness losses
        proposal_network_config: dict | None = None  # of estimator=proposal, which is not available here
        prop_optimizer_config: dict | None = None  # the same
        prop_scheduler_config: dict | None = None  # the same
        num_samples_per_ray_proposal: int = 64  # the same

    cfg: Config

    def configure(self, geometry: BaseGeometry, material: BaseMaterial, background: BaseBackground) -> None:
        if self.cfg.estimator == "proposal":
            raise UserError(
                "renderer.estimator: 'proposal' (learned proposal networks) is not available here, "
                "use occgrid or importance"
            )
        super().configure(geometry, material, background)

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
            comp_rgb, comp_rgb_fg, comp_rgb_bg [B, H, W, C], opacity, depth, z_variance [B, H, W, 1];
            in training also each sample's weights, t_points, t_intervals [S, 1], t_dirs, points [S, 3], ray_indices [S]
            and what the geometry gave there; comp_normal [B, H, W, 3] in [0, 1] outside training or where asked for.
        """
        samples = volume_samples(self.sample, rays_o, rays_d)

        def weights_of(geo_out: dict[str, Tensor]) -> Tensor:
            density = geo_out["density"][:, 0].float()
            return render_weight_from_density(samples.t_starts, samples.t_ends, density, samples.ray_indices)[0]

        asked, comp_normal = self.material.requires_normal, self.cfg.return_comp_normal or not self.training
        out, weights = render_volume(
            self, samples, rays_d, light_positions, bg_color, kwargs, weights_of, asked, comp_normal
        )
        opacity = out["opacity"].view(-1, 1)
        out["z_variance"] = samples.image(depth_variance(weights, samples.t_points, opacity, samples.ray_indices))
        if self.training and self.cfg.return_normal_perturb:
            moved = samples.points + sent(torch.randn(samples.points.shape), samples.points) * 1e-2
            out["normal_perturb"] = self.geometry(moved, output_normal=True)["normal"]
        return out

    @torch.no_grad()
    def interval_density(self, rays_o: Tensor, rays_d: Tensor, t_starts: Tensor, t_ends: Tensor) -> Tensor:
        """Density [S] in the middle of the intervals."""
        points = rays_o + rays_d * ((t_starts + t_ends) / 2)[:, None]
        return chunk_batch(self.geometry.forward_density, self.cfg.eval_chunk_size, points)[:, 0]

    update_step_changes_buffers_alone = True  # of the occupancy grid

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        if self.training and not on_load_weights:
            self.update_occupancy(global_step, lambda points: self._density_for_grid(points) * self.render_step_size)

    @torch.no_grad()
    def _density_for_grid(self, points: Tensor) -> Tensor:
        return chunk_batch(self.geometry.forward_density, self.cfg.eval_chunk_size, points)
