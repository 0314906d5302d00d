"""The hash grid by tinycudann, where a user has it: on CUDA, float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from threestudio.ops.agreement import agrees, wave
from threestudio.ops.hash_grid.layout import HashGridLayout
from threestudio.ops.hash_grid.reference import hash_grid_torch


def tinycudann_agrees(layout: HashGridLayout, device: torch.device) -> bool:
    """Whether tinycudann has run this layout in this process and given the reference's numbers."""
    return agrees("tinycudann", device, lambda: _compared(layout, device), layout)


def _compared(layout: HashGridLayout, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Features, first derivatives, and the derivative of a normal's length in the table, of some points."""
    points = 0.05 + 0.9 * wave(64, 3, device=device, frequency=2.1)
    table = wave(layout.n_entries, layout.n_features, device=device) - 0.5

    def results(function: Callable) -> list[Tensor]:
        x, t = points.clone().requires_grad_(), table.clone().requires_grad_()
        features = function(x, t, layout, layout.n_levels)
        in_points, in_table = torch.autograd.grad(features.sin().sum(), [x, t], create_graph=True)
        (second,) = torch.autograd.grad(in_points.square().sum(), t)
        return [features, in_points, in_table, second]

    return list(zip(results(hash_grid_tinycudann), results(hash_grid_torch)))


def hash_grid_tinycudann(positions: Tensor, table: Tensor, layout: HashGridLayout, n_active: int) -> Tensor:
    """``hash_grid_torch`` through tinycudann's own kernels, with our table in place of its parameters."""
    encoding = _tinycudann_encoding(layout)
    features = torch.func.functional_call(encoding, {"params": table.reshape(-1)}, (positions,))
    open_features = n_active * layout.n_features
    return torch.cat([features[:, :open_features], torch.zeros_like(features[:, open_features:])], -1).to(table.dtype)


@lru_cache(maxsize=8)
def _tinycudann_encoding(layout: HashGridLayout) -> torch.nn.Module:
    import tinycudann

    config = {
        "otype": "HashGrid",
        "n_levels": layout.n_levels,
        "n_features_per_level": layout.n_features,
        "log2_hashmap_size": layout.log2_hashmap_size,
        "base_resolution": layout.base_resolution,
        "per_level_scale": layout.per_level_scale,
    }
    return tinycudann.Encoding(3, config, dtype=torch.float32)
