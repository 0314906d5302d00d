"""Fits a field over an encoding to given signed distances: the start that ``shape_init`` asks for."""

from __future__ import annotations

from typing import Callable, Optional, Protocol, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from threestudio.models.geometry.base import contract_to_unisphere
from threestudio.models.networks import CompositeEncoding, HashGrid, ProgressiveBandHashGrid
from threestudio.ops.hash_grid import HashGridLayout, hash_grid

STEPS, BATCH, POOL = 400, 4096, 2**17
FIRST_RATE, LAST_RATE = 1e-2, 1e-3
TOLERANCE = 2e-3  # root mean square error, in half sides of the box, at which the fit is good enough
# A hash grid's coarse levels hold a start; millions of finer entries would make each of Adam's steps slow.
LARGEST_TABLE = 2**19


class DistanceField(Protocol):
    """What is fitted: an encoding and a network over it, as ``implicit-sdf`` has them."""

    bbox: Tensor  # [2, 3]
    unbounded: bool
    encoding: CompositeEncoding
    sdf_network: nn.Module

    def sdf_from_encoding(self, points: Tensor, encoded: Tensor) -> Tensor:
        """[N, 3], [N, E] -> signed distances [N, 1]"""


def fit_signed_distance(
    geometry: DistanceField, target: Callable[[Tensor], Tensor], radius: float, label: str = "shape"
) -> float:
    """Trains ``geometry`` towards the distances ``target`` (points [N, 3] -> [N, 1]); gives the last error.

    Adam on points that are uniform in the box of half side ``radius``, drawn from torch's global generator. Of a hash
    grid only the coarse levels are trained. Ends early where the root mean square error is small.
    """
    from tqdm import tqdm

    device, steps = geometry.bbox.device, STEPS
    points = ((torch.rand(POOL, 3) * 2 - 1) * radius).to(device)
    distances = target(points)
    with torch.enable_grad():
        encoding, table = _coarse(geometry.encoding)
        parameters = list(geometry.sdf_network.parameters()) + [p for p in encoding.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=FIRST_RATE)
        decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, (LAST_RATE / FIRST_RATE) ** (1 / steps))
        running = float("inf")
        with tqdm(total=steps, desc=f"shape_init {label}", leave=False, disable=None) as progress:
            for _ in range(steps):
                batch = torch.randint(POOL, (BATCH,)).to(device)
                at = points[batch]
                encoded = encoding(contract_to_unisphere(at, geometry.bbox, geometry.unbounded))
                loss = F.mse_loss(geometry.sdf_from_encoding(at, encoded), distances[batch])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                decay.step()
                progress.update()
                error = loss.item() ** 0.5
                running = error if running == float("inf") else 0.9 * running + 0.1 * error
                if running < TOLERANCE * radius:
                    break
        optimizer.zero_grad(set_to_none=True)
    if table is not None:
        grid, head = table
        with torch.no_grad():
            grid.params[: head.shape[0]] = head
    return running


class _CoarseLevels(nn.Module):
    """The first levels of a hash grid with a table of their own; the others give zeros."""

    def __init__(self, grid: HashGrid, n_levels: int) -> None:
        super().__init__()
        full = grid.layout
        self.layout = HashGridLayout(
            n_levels, full.n_features, full.log2_hashmap_size, full.base_resolution, full.per_level_scale
        )
        self.params = nn.Parameter(grid.params[: self.layout.n_entries].detach().clone())
        self.backend, self.n_input_dims, self.n_output_dims = grid.backend, grid.n_input_dims, grid.n_output_dims

    def forward(self, x: Tensor) -> Tensor:
        features = hash_grid(x, self.params, self.layout, backend=self.backend)
        return F.pad(features, (0, self.n_output_dims - features.shape[-1]))


def _coarse(encoding: CompositeEncoding) -> Tuple[nn.Module, Optional[Tuple[HashGrid, nn.Parameter]]]:
    """The encoding to fit with and, where its table is a copy, the grid and the copy; other encodings as they are."""
    inner, open_levels = encoding.encoding, None
    if isinstance(inner, ProgressiveBandHashGrid):
        inner, open_levels = inner.encoding, inner.current_level
    if not isinstance(inner, HashGrid):
        return encoding, None
    layout = inner.layout
    n_levels = 1
    for count in range(2, (open_levels or layout.n_levels) + 1):
        coarser = HashGridLayout(
            count, layout.n_features, layout.log2_hashmap_size, layout.base_resolution, layout.per_level_scale
        )
        if coarser.n_entries > LARGEST_TABLE:
            break
        n_levels = count
    levels = _CoarseLevels(inner, n_levels)
    return CompositeEncoding(levels, encoding.include_xyz, encoding.xyz_scale, encoding.xyz_offset), (
        inner,
        levels.params,
    )
