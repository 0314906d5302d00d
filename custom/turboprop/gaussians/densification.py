"""Adaptive density control: Gaussians are cloned, split, removed and made transparent again while they train.

After Kerbl et al. 2023, 3D Gaussian Splatting, section 5.2. Pure functions: a state and a step number go in, a state
and what became of each Gaussian come out. Only the places of split Gaussians are random: one draw from torch's
global generator, and from it each Gaussian's own by its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from threestudio.ops.gaussian_rasterization.projection import rotation_matrices
from threestudio.utils.devices import constant

from .names import children, normals_by_name
from .parameters import Parameters, activate

SPLIT_SHRINK = 1.6  # Kerbl et al. 2023, section 5.2: scales of the two children are divided by it
RESET_FACTOR = 2.0  # a reset leaves opacities at this times the opacity below which Gaussians are removed

Moments = dict[str, dict[str, Tensor]]  # parameter: the optimizer's averages by name, each shaped as the parameter


@dataclass(frozen=True)
class DensityControl:
    """When and how the number of Gaussians changes. Steps count finished optimizer steps."""

    max_num: int = 500_000  # never more Gaussians than this, unless there are more already
    densification_interval: int = 50  # steps between two rounds of cloning and splitting
    densify_from_iter: int = 100  # none before this step
    densify_until_iter: int = 2000  # none from this step on, nor opacity resets
    densify_grad_threshold: float = 0.01  # mean gradient of the loss by the place on the screen, see ``observe``
    split_thresh: float = 0.02  # largest standard deviation from which a Gaussian is split, not cloned; world units
    prune_interval: int = 50  # steps between two rounds of removal
    prune_from_iter: int = 100
    prune_until_iter: int = 2000
    min_opac_prune: float = 0.005  # less opaque Gaussians are removed
    radii2d_thresh: float = 1000.0  # pixels; Gaussians seen larger since the last change are removed
    largest_scale: float = float("inf")  # world units; Gaussians with a larger standard deviation are removed
    opacity_reset_interval: int = 100_000  # steps between two resets

    def densifies_at(self, step: int) -> bool:
        return _due(step, self.densification_interval, self.densify_from_iter, self.densify_until_iter)

    def prunes_at(self, step: int) -> bool:
        return _due(step, self.prune_interval, self.prune_from_iter, self.prune_until_iter)

    def resets_at(self, step: int) -> bool:
        return _due(step, self.opacity_reset_interval, 1, self.densify_until_iter)

    def next_event(self, step: int) -> int | None:
        """The first step after `step` at which something may change, or None."""
        last = max(self.densify_until_iter, self.prune_until_iter)
        for later in range(step + 1, last):
            if self.densifies_at(later) or self.prunes_at(later) or self.resets_at(later):
                return later
        return None


def _due(step: int, interval: int, first: int, end: int) -> bool:
    return first <= step < end and step % interval == 0


class Statistics(NamedTuple):
    """What the views since the last change have shown of each Gaussian."""

    gradient_sum: Tensor  # [N] norms of screen gradients, summed over views
    view_count: Tensor  # [N] views in which it was visible
    max_radius: Tensor  # [N] pixels, largest radius on a screen

    @staticmethod
    def zeros(like: Tensor) -> Statistics:  # [N, ...]
        zero = torch.zeros(like.shape[0], dtype=torch.float32, device=like.device)
        return Statistics(zero, zero.clone(), zero.clone())

    def plus(self, others: Statistics) -> Statistics:
        """What these views and others have shown."""
        return Statistics(
            self.gradient_sum + others.gradient_sum,
            self.view_count + others.view_count,
            torch.maximum(self.max_radius, others.max_radius),
        )


class GaussianState(NamedTuple):
    """All that a change of number touches."""

    parameters: Parameters  # each [N, ...]
    moments: Moments  # those parameters that have any
    statistics: Statistics
    names: Tensor  # [N] int64, no two alike


class Change(NamedTuple):
    """Where each of the M Gaussians after a change comes from."""

    parents: Tensor  # [M] int64, row before the change
    is_new: Tensor  # [M] bool, a clone or a half of a split one: it starts with no moments

    def gather(self, values: Tensor) -> Tensor:
        """[N, ...] before -> [M, ...] after, each Gaussian with its parent's value."""
        return values[self.parents]

    def gather_moments(self, values: Tensor) -> Tensor:
        """[N, ...] before -> [M, ...] after, each Gaussian with its parent's value, new ones with zeros."""
        mask = self.is_new.view(-1, *(1,) * (values.dim() - 1))
        return torch.where(mask, torch.zeros_like(values[:1]), values[self.parents])

    def then(self, later: Change) -> Change:
        return Change(self.parents[later.parents], self.is_new[later.parents] | later.is_new)


def observe(
    statistics: Statistics,
    gradients: Tensor,  # [B, N, 2] of the loss by means2d in pixels
    radii: Tensor,  # [B, N] pixels
    visible: Tensor,  # [B, N] bool
    height: int,
    width: int,
) -> Statistics:
    """Adds one batch of views.

    Gradients count by normalized screen coordinates, which go from -1 to 1 over the image, so that thresholds do not
    depend on its size (gsplat's documentation of DefaultStrategy, grow_grad2d). Non-finite ones are left out.
    """
    half_size = constant((0.5 * width, 0.5 * height), gradients)
    norms = (gradients * half_size).norm(dim=-1)  # [B, N]
    counted = visible & torch.isfinite(norms)
    return Statistics(
        statistics.gradient_sum + torch.where(counted, norms, 0.0).sum(0),
        statistics.view_count + counted.sum(0),
        torch.maximum(statistics.max_radius, torch.where(visible, radii, 0.0).amax(0)),
    )


@torch.no_grad()
def density_control_step(
    control: DensityControl, state: GaussianState, step: int, isotropic: bool = False
) -> tuple[GaussianState, Change | None]:
    """What is due after optimizer step number `step` (1 after the first).

    Returns the state and, if the number or order of Gaussians changed, the change. The given state is left as it is.
    """
    change = None
    if control.densifies_at(step):
        state, change = densify(control, state, step, isotropic)
    if control.prunes_at(step):
        state, pruned = prune(control, state, isotropic)
        change = pruned if change is None else change.then(pruned)
    if control.resets_at(step):
        state = reset_opacity(state, RESET_FACTOR * control.min_opac_prune)
    return state, change


def apply_change(state: GaussianState, change: Change) -> GaussianState:
    """Every row with its parent's values; moments of new rows are 0."""
    return GaussianState(
        {name: change.gather(value) for name, value in state.parameters.items()},
        {
            name: {key: change.gather_moments(value) for key, value in moments.items()}
            for name, moments in state.moments.items()
        },
        Statistics(*(change.gather(value) for value in state.statistics)),
        change.gather(state.names),
    )


def densify(
    control: DensityControl, state: GaussianState, step: int, isotropic: bool = False
) -> tuple[GaussianState, Change]:
    """Clones small and splits large Gaussians whose screen gradient is high; statistics start anew.

    Where there is no room for all, those with the highest gradient come first. Rows after: all that were not split,
    in their order, the clones, then first and second halves.
    """
    gradient_sum, view_count, _ = state.statistics
    mean_gradient = gradient_sum / view_count.clamp(min=1)
    grows = mean_gradient > control.densify_grad_threshold
    room = max(0, control.max_num - grows.shape[0])
    if int(grows.sum()) > room:
        order = torch.argsort(torch.where(grows, mean_gradient, -1.0), descending=True, stable=True)
        grows = torch.zeros_like(grows)
        grows[order[:room]] = True
    is_large = activate(state.parameters, isotropic).scales.amax(-1) > control.split_thresh
    kept = torch.nonzero(~(grows & is_large)).squeeze(1)
    clones = torch.nonzero(grows & ~is_large).squeeze(1)
    split = torch.nonzero(grows & is_large).squeeze(1)
    new = torch.cat([clones, split, split])
    is_new = torch.cat([torch.zeros_like(kept), torch.ones_like(new)]).bool()
    change = Change(torch.cat([kept, new]), is_new)
    changed = apply_change(state, change)
    parameters = changed.parameters
    born = [children(state.names[rows], step, half) for half, rows in ((0, clones), (0, split), (1, split))]
    names = torch.cat([state.names[kept], *born])
    if len(split):
        parameters = _separate_halves(parameters, names[-2 * len(split) :], isotropic)
    return GaussianState(parameters, changed.moments, Statistics.zeros(change.parents), names), change


def _separate_halves(parameters: Parameters, names: Tensor, isotropic: bool) -> Parameters:  # names [H] of the halves
    """The last H rows: means drawn from the Gaussians that they halve, and smaller scales."""
    count = len(names)
    halved = activate({name: value[-count:] for name, value in parameters.items()}, isotropic)
    key = int(torch.randint(2**62, ()))
    local = normals_by_name(names, key, 3).to(halved.means) * halved.scales
    offset = torch.einsum("nij,nj->ni", rotation_matrices(halved.quaternions), local)
    means, log_scales = parameters["means"].clone(), parameters["log_scales"].clone()
    means[-count:] += offset
    log_scales[-count:] -= torch.log(log_scales.new_tensor(SPLIT_SHRINK))
    return {**parameters, "means": means, "log_scales": log_scales}


def prune(control: DensityControl, state: GaussianState, isotropic: bool = False) -> tuple[GaussianState, Change]:
    """Removes Gaussians that are transparent, too large or not finite; the most opaque one always stays."""
    gaussians = activate(state.parameters, isotropic)
    finite = torch.ones_like(gaussians.opacities, dtype=torch.bool)
    for value in state.parameters.values():
        finite &= torch.isfinite(value).flatten(1).all(1) if value.dim() > 1 else torch.isfinite(value)
    keep = (
        finite
        & (gaussians.opacities >= control.min_opac_prune)
        & (state.statistics.max_radius <= control.radii2d_thresh)
        & (gaussians.scales.amax(-1) <= control.largest_scale)
    )
    if not bool(keep.any()):
        keep[torch.where(finite, gaussians.opacities, -1.0).argmax()] = True
    parents = torch.nonzero(keep).squeeze(1)
    change = Change(parents, torch.zeros_like(parents, dtype=torch.bool))
    return apply_change(state, change), change


def reset_opacity(state: GaussianState, opacity: float) -> GaussianState:
    """No Gaussian more opaque than `opacity`, and no memory of their gradients: those that are needed come back."""
    logits = state.parameters["opacity_logits"]
    ceiling = torch.logit(logits.new_tensor(opacity))
    moments = dict(state.moments)
    if "opacity_logits" in moments:
        moments["opacity_logits"] = {key: torch.zeros_like(value) for key, value in moments["opacity_logits"].items()}
    parameters = {**state.parameters, "opacity_logits": torch.minimum(logits, ceiling)}
    return state._replace(parameters=parameters, moments=moments)
