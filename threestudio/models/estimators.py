"""Estimators: objects that decide where along a ray the field is worth a look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from threestudio.ops.ray_marching import march_occupied
from threestudio.ops.ray_sampling import RaySamples, importance_resample, ray_aabb_intersect, uniform_edges
from threestudio.ops.volume_rendering import render_weight_from_density
from threestudio.ops.volume_rendering.reference import render_weight_from_density_dense
from threestudio.utils.devices import sent
from threestudio.utils.errors import UserError

SigmaFn = Callable[[Tensor, Tensor, Tensor], Tensor]  # t_starts [S], t_ends [S], ray_indices [S] -> density [S]


def _of_nerfacc(module: nn.Module, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
    """A hook before loading: nerfacc's grid has levels, of which threestudio has one, and keeps its resolution."""
    state_dict.pop(prefix + "resolution", None)
    for name, shape in (("aabbs", (1, 6)), ("binaries", (1, *module.binaries.shape))):
        value = state_dict.get(prefix + name)
        if value is not None and value.shape == shape:
            state_dict[prefix + name] = value.reshape(module.get_buffer(name).shape)


class OccupancyGridEstimator(nn.Module):
    """A grid of cells that remembers where the field has been seen to be dense (Mueller et al. 2022, appendix E.2).

    ``occs`` holds a decaying maximum of each cell's optical depth over one step, ``binaries`` which cells are taken
    for occupied. Both are buffers, so they are in checkpoints. Random draws come from torch's global generator.
    """

    def __init__(self, bbox: Tensor, resolution: int = 32) -> None:
        super().__init__()
        self.resolution = resolution
        self.register_buffer("aabbs", bbox.detach().clone().float())  # [2, 3]
        self.register_buffer("occs", torch.zeros(resolution**3))
        self.register_buffer("binaries", torch.zeros(3 * (resolution,), dtype=torch.bool))
        self.register_load_state_dict_pre_hook(_of_nerfacc)

    def fill(self) -> None:
        """Takes every cell for occupied."""
        self.occs.fill_(1.0)
        self.binaries.fill_(True)

    @torch.no_grad()
    def update_every_n_steps(
        self,
        step: int,
        occ_eval_fn: Callable[[Tensor], Tensor],
        occ_thre: float = 1e-2,
        ema_decay: float = 0.95,
        warmup_steps: int = 256,
        n: int = 16,
    ) -> None:
        """Every n steps, looks at one random point of each cell; after warmup_steps only at a quarter of the cells,
        drawn at random, and as many occupied ones.

        Args:
            occ_eval_fn: points [M, 3] -> occupancy [M] or [M, 1], e.g. density times step length.
            occ_thre: occupancy above which a cell is occupied (the mean occupancy, where that is lower).
        """
        if step % n == 0:
            self._update(self._cells_to_update(step < warmup_steps), occ_eval_fn, occ_thre, ema_decay)

    def _cells_to_update(self, all_cells: bool) -> Tensor:
        n_cells = self.occs.shape[0]
        if all_cells:
            return torch.arange(n_cells, device=self.occs.device)
        quarter = n_cells // 4
        drawn = torch.randint(n_cells, (quarter,)).to(self.occs.device)
        occupied = self.binaries.reshape(-1).nonzero()[:, 0]
        if occupied.shape[0] > quarter:
            occupied = occupied[torch.randint(occupied.shape[0], (quarter,)).to(occupied.device)]
        return torch.cat([drawn, occupied]).unique()

    def _update(
        self, cells: Tensor, occ_eval_fn: Callable[[Tensor], Tensor], occ_thre: float, ema_decay: float
    ) -> None:
        r = self.resolution
        corner = torch.stack([cells // (r * r), cells // r % r, cells % r], -1)
        unit = (corner + sent(torch.rand(cells.shape[0], 3), self.occs)) / r
        points = self.aabbs[0] + unit * (self.aabbs[1] - self.aabbs[0])
        seen = occ_eval_fn(points).reshape(-1).to(self.occs.dtype)
        self.occs[cells] = torch.maximum(self.occs[cells] * ema_decay, seen)
        # A field that is thin everywhere must not lose all of its cells: then the mean is the threshold.
        threshold = self.occs.mean().clamp(max=occ_thre)
        self.binaries = (self.occs > threshold).reshape(self.binaries.shape)

    @torch.no_grad()
    def sampling(
        self,
        rays_o: Tensor,
        rays_d: Tensor,
        sigma_fn: SigmaFn | None = None,
        near_plane: float = 0.0,
        far_plane: float = 1e10,
        render_step_size: float = 1e-3,
        early_stop_eps: float = 1e-4,
        alpha_thre: float = 0.0,
        stratified: bool = False,
    ) -> RaySamples:
        """Steps through occupied cells; with sigma_fn, less those that cannot be seen.

        Args:
            rays_o, rays_d: [N, 3]; near_plane, far_plane: distances; render_step_size: length of a step.
            early_stop_eps: a sample with less light left before it is dropped.
            alpha_thre: so is one of less opacity (or less than the mean occupancy, where that is lower).
            stratified: each ray's first step starts at random within one step.
        """
        t_min, t_max, _ = ray_aabb_intersect(rays_o, rays_d, self._occupied_box(), near_plane, far_plane)
        if stratified:
            t_min = t_min + sent(torch.rand(t_min.shape[0]), t_min) * render_step_size
        samples = march_occupied(rays_o, rays_d, t_min, t_max, render_step_size, self.binaries, self.aabbs)
        if sigma_fn is None or samples.ray_indices.numel() == 0 or (alpha_thre <= 0 and early_stop_eps <= 0):
            return samples
        density = sigma_fn(samples.t_starts, samples.t_ends, samples.ray_indices).reshape(-1).float()
        _, transmittance, alpha = render_weight_from_density(
            samples.t_starts, samples.t_ends, density, samples.ray_indices
        )
        least = self.occs.mean().clamp(max=alpha_thre)
        keep = ((transmittance > early_stop_eps) & (alpha >= least)).nonzero()[:, 0]
        return RaySamples(*(x[keep] for x in samples))

    def _occupied_box(self) -> Tensor:
        """The box around the occupied cells [2, 3]; of no size at the lower corner where there are none."""
        low, high = self.aabbs
        taken = self.binaries.any(2)  # [x, y]
        along = torch.stack([taken.any(1), taken.any(0), self.binaries.any(0).any(0)])  # [3, R]
        index = torch.arange(self.resolution, device=along.device)
        first = torch.where(along, index, self.resolution).amin(1)
        end = torch.where(along, index + 1, 0).amax(1)
        cell = (high - low) / self.resolution
        return low + torch.stack([torch.where(end > 0, first, 0), end]) * cell


class ImportanceEstimator(nn.Module):
    """Equal intervals first, then others where the proposals' weight lies, and the two together; as many for each ray.

    NeRF (Mildenhall et al. 2020), section 5.2: coarse and fine samples are shaded together.
    """

    @torch.no_grad()
    def sampling(
        self,
        prop_sigma_fns: list[Callable[[Tensor, Tensor], Tensor]],
        prop_samples: list[int],
        num_samples: int,
        n_rays: int,
        near_plane: float | Tensor,
        far_plane: float | Tensor,
        sampling_type: str = "uniform",
        stratified: bool = False,
        requires_grad: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Samples n_rays rays from near_plane to far_plane (numbers, or one for each ray [n_rays]).

        Args:
            prop_sigma_fns: proposals, coarse to fine: t_starts [n_rays, S], t_ends -> density [n_rays, S] or [..., 1].
            prop_samples: intervals of each proposal; num_samples: intervals by the last proposal's weights.
            sampling_type: uniform, or lindisp (uniform in inverse distance).
            requires_grad: proposals have nothing to learn here; True is refused.
        Returns:
            t_starts, t_ends [n_rays, last of prop_samples + num_samples + 1], between the sorted edges of the last
            proposal and of the resampled intervals; where both have an edge, an interval has no length. Without a
            proposal there are num_samples equal intervals.
        """
        if len(prop_sigma_fns) != len(prop_samples):
            raise UserError(
                f"prop_sigma_fns and prop_samples: expected as many of each, got {len(prop_sigma_fns)} and "
                f"{len(prop_samples)}"
            )
        if sampling_type not in ("uniform", "lindisp"):
            raise UserError(f"sampling_type: expected uniform or lindisp, got {sampling_type!r}")
        if requires_grad:
            raise UserError(
                "ImportanceEstimator.sampling: requires_grad=True is for learned proposals, "
                "which this estimator has none of"
            )
        device = next((x.device for x in (near_plane, far_plane) if isinstance(x, Tensor)), None)
        near, far = (
            torch.as_tensor(x, dtype=torch.float32, device=device).expand(n_rays) for x in (near_plane, far_plane)
        )
        counts = [*prop_samples, num_samples]
        edges = coarse = uniform_edges(near, far, counts[0], stratified, lindisp=sampling_type == "lindisp")
        for sigma_fn, count in zip(prop_sigma_fns, counts[1:]):
            coarse = edges
            t_starts, t_ends = edges[:, :-1], edges[:, 1:]
            density = sigma_fn(t_starts, t_ends).reshape(t_starts.shape).float()
            weights, _, _ = render_weight_from_density_dense(t_starts, t_ends, density)
            edges = importance_resample(edges, weights, count, stratified)
        if prop_sigma_fns:
            edges = torch.cat([coarse, edges], dim=1).sort(dim=1).values
        return edges[:, :-1].contiguous(), edges[:, 1:].contiguous()
