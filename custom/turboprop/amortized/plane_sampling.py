"""Bilinear interpolation of three planes of features a prompt at packed points."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .field import FeatureTable

# Which coordinates the columns and the rows of each plane are: x and y, x and z, z and y. EG3D's planes (arXiv
# 2112.07945), with the third one as its authors' correction has it.
PLANES = ((0, 1), (0, 2), (2, 1))


def corner_weights(places: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """The four cells around each place and their shares.

    places [M, 2] (column, row) in [-1, 1], cell centres at (i + 0.5) / R of the plane. Places beyond the outermost
    centres take the border's value.
    -> flat indices [M, 4] into (row, column) order, weights [M, 4] that sum to 1.
    """
    position = ((places + 1) * (0.5 * resolution) - 0.5).clamp(0, resolution - 1)
    low = position.detach().floor().clamp_max(resolution - 2).long()
    share = position - low
    base = low[:, 0] + resolution * low[:, 1]
    along_x, along_y = torch.stack([1 - share, share], -1).unbind(1)  # [M, 2] each
    weights = along_x[:, None, :] * along_y[:, :, None]
    return torch.stack([base + step for step in (0, 1, resolution, resolution + 1)], -1), weights.reshape(-1, 4)


class PlaneSpace(FeatureTable):
    """Three planes of features for each prompt, table [P * 3 * R^2, C]. The `Space` of a field.

    The features of a point's three planes stand one after another.
    """

    @classmethod
    def of(cls, planes: Tensor) -> PlaneSpace:  # [P, 3, C, R, R], rows before columns
        return cls(planes.permute(0, 1, 3, 4, 2).reshape(-1, planes.shape[2]), planes.shape[-1])

    @property
    def prompts(self) -> int:
        return self.table.shape[0] // (3 * self.resolution**2)

    def features(self, points: Tensor, owner: Tensor) -> Tensor:  # [M, 3] in [-1, 1], [M] -> [M, 3 C]
        places = torch.stack([points[:, pair] for pair in PLANES], 1).reshape(-1, 2)
        indices, weights = corner_weights(places, self.resolution)
        plane = owner[:, None] * 3 + torch.arange(3, device=owner.device)  # [M, 3]
        indices = indices + plane.reshape(-1, 1) * self.resolution**2
        found = F.embedding_bag(indices, self.table, per_sample_weights=weights, mode="sum")
        return found.reshape(len(points), -1)

    def stored(self, resolution: int, first: int, count: int) -> Tensor | None:
        return None
