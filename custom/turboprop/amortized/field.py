"""A library of signed distance fields, one a prompt: features of a space, read by small networks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

LATTICE_ROWS = {"cpu": 1 << 13, "cuda": 1 << 20}  # points of a lattice whose distances are computed at once


class Space(Protocol):
    """What a generator made of P prompts: features at any point of the cube."""

    prompts: int  # P
    resolution: int  # points along an axis of the lattice that tells where surfaces are
    shared: bool  # whether a point has the same features for every prompt
    device: torch.device
    dtype: torch.dtype

    def features(self, points: Tensor, owner: Tensor) -> Tensor:
        """points [M, 3] in [-1, 1], the prompt of each [M] -> [M, F]."""

    def stored(self, resolution: int, first: int, count: int) -> Tensor | None:
        """Features [count, F] from the `first` on of all prompts' lattices in a row, where they are at hand."""


@dataclass
class FeatureTable:
    """Features of P prompts in one table, a row a place of their grids: what spaces of grids are made of."""

    table: Tensor  # [rows of all prompts, F]
    resolution: int  # of a grid
    shared = False

    @property
    def device(self) -> torch.device:
        return self.table.device

    @property
    def dtype(self) -> torch.dtype:
        return self.table.dtype


class Heads(Protocol):
    """What reads a space's features."""

    def signed_distance(self, points: Tensor, features: Tensor, owner: Tensor) -> Tensor:
        """points [M, 3] world units, features [M, F], the prompt of each [M] -> [M] world units."""

    def color_logits(self, features: Tensor, owner: Tensor) -> Tensor:
        """features [M, F], the prompt of each [M] -> [M, C]."""


class FieldHeads(nn.Module):
    """Small bias-free networks from features to signed distance and colour logits, the same for every prompt.

    Their last layers start at zero: the first shape is the bias sphere, plain grey, for
    every prompt.
    """

    def __init__(self, feature_dim: int, hidden: int, color_dim: int, sphere_radius: float, hidden_layers: int = 1):
        super().__init__()
        self.sdf = _bias_free_mlp(feature_dim, hidden, 1, hidden_layers)
        self.color = _bias_free_mlp(feature_dim, hidden, color_dim, hidden_layers)
        self.sphere_radius = sphere_radius

    def signed_distance(self, points: Tensor, features: Tensor, owner: Tensor) -> Tensor:
        return points.norm(dim=-1) - self.sphere_radius + self.sdf(features).squeeze(-1)

    def color_logits(self, features: Tensor, owner: Tensor) -> Tensor:
        return self.color(features)


def _bias_free_mlp(inputs: int, hidden: int, outputs: int, hidden_layers: int) -> nn.Sequential:
    last = nn.Linear(hidden, outputs, bias=False)
    nn.init.zeros_(last.weight)
    widths = [inputs, *[hidden] * hidden_layers]
    layers = [(nn.Linear(i, o, bias=False), nn.ReLU()) for i, o in itertools.pairwise(widths)]
    return nn.Sequential(*itertools.chain(*layers), last)


class Field:
    """Heads and a space together: a function of points for each of the space's prompts."""

    def __init__(self, heads: Heads, space: Space, radius: float):
        """`radius`: half the side of the cube that the space spans, world units."""
        self.heads, self.space, self.radius = heads, space, radius

    @property
    def prompts(self) -> int:
        return self.space.prompts

    @property
    def device(self) -> torch.device:
        return self.space.device

    def features(self, points: Tensor, owner: Tensor) -> Tensor:  # [M, 3], [M] -> [M, F]
        return self.space.features(points / self.radius, owner)

    def features_of(self, queries: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        """The features of several sets of points: ([M, 3], [M]) each -> [M, F] each.

        One look-up answers for all: the gradient of each look-up is a table as large as the space.
        """
        points, owners = (torch.cat(parts) for parts in zip(*queries))
        return self.features(points, owners).split([len(owner) for _, owner in queries])

    def signed_distance(self, points: Tensor, owner: Tensor) -> Tensor:  # [M, 3], [M] -> [M]
        return self.heads.signed_distance(points, self.features(points, owner), owner)

    def gradient(self, points: Tensor, owner: Tensor, epsilon: float, center: Tensor | None = None) -> Tensor:
        """Forward differences of the signed distance, step `epsilon` world units: [M, 3], [M] -> [M, 3].

        `center` [M] is the signed distance at the points, where it is known.
        """
        moved, owners = points_ahead(points, epsilon), owner.repeat_interleave(3)
        if center is not None:
            return forward_differences(center, self.signed_distance(moved, owners), epsilon)
        here, ahead = self.features_of([(points, owner), (moved, owners)])
        center = self.heads.signed_distance(points, here, owner)
        return forward_differences(center, self.heads.signed_distance(moved, ahead, owners), epsilon)

    @torch.no_grad()
    def lattice(self, resolution: int) -> Tensor:
        """Signed distances at the centres of a G^3 lattice of the cube: -> [P, G, G, G] (z, y, x)."""
        prompts = self.prompts
        line = (torch.arange(resolution, device=self.device) + 0.5) / resolution * 2 - 1
        z, y, x = torch.meshgrid(line, line, line, indexing="ij")
        points = (torch.stack([x, y, z], -1) * self.radius).reshape(-1, 3).to(self.space.dtype)
        values = points.new_empty(prompts, len(points))
        # In pieces: the hidden layer of all points at once would be larger than the space itself. A GPU's are of
        # several prompts where they fit: its time is that of asking for the pieces. So are those of a shared space.
        rows = LATTICE_ROWS.get(self.device.type, LATTICE_ROWS["cpu"])
        together = max(1, rows // len(points)) if self.device.type == "cuda" else 1
        if self.space.shared:
            together, rows = prompts, max(1, rows // prompts)
        for first, start in itertools.product(range(0, prompts, together), range(0, len(points), rows)):
            owners = range(first, min(first + together, prompts))
            found = self._lattice_piece(resolution, owners, start, points[start : start + rows])
            values[first : owners.stop, start : start + rows] = found.view(len(owners), -1)
        return values.reshape(prompts, resolution, resolution, resolution)

    def _lattice_piece(self, resolution: int, owners: range, start: int, points: Tensor) -> Tensor:
        """The signed distances [O N] of O prompts at the lattice's points [N, 3] from `start` on."""
        piece = points.repeat(len(owners), 1)
        owner = torch.arange(owners.start, owners.stop, device=piece.device).repeat_interleave(len(points))
        if self.space.shared:
            features = self.features(points, owner[: len(points)]).repeat(len(owners), 1)
        else:
            features = self.space.stored(resolution, owners.start * resolution**3 + start, len(piece))
            features = self.features(piece, owner) if features is None else features
        return self.heads.signed_distance(piece, features, owner)


def points_ahead(points: Tensor, epsilon: float) -> Tensor:
    """Points [M, 3] moved by `epsilon` along each axis: [3 M, 3], three a point."""
    return (points[:, None] + epsilon * torch.eye(3, dtype=points.dtype, device=points.device)).reshape(-1, 3)


def forward_differences(center: Tensor, ahead: Tensor, epsilon: float) -> Tensor:
    """Values [M] at points and [3 M] at `points_ahead` of them -> gradients [M, 3]."""
    return (ahead.reshape(-1, 3) - center[:, None]) / epsilon
