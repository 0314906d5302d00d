"""Views of an object: how a view's prompt reads, which cameras see it, and perp-neg's blends between views.

The views always stand in the order side, front, back, overhead. Angles are in degrees; azimuth 0 looks at the front.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from threestudio.utils.base import BaseObject

SIDE, FRONT, BACK, OVERHEAD = range(4)

ViewCondition = Callable[[Tensor, Tensor, Tensor], Tensor]  # elevation, azimuth, distance, each [B] -> bool [B]


@dataclass
class DirectionConfig:
    """One view of an object: how its prompt reads, and which cameras see it."""

    name: str
    prompt: Callable[[str], str]
    negative_prompt: Callable[[str], str]
    condition: ViewCondition


@dataclass
class ViewKeys(BaseObject.Config):
    """The keys of a prompt processor that say how views differ."""

    overhead_threshold: float = 60.0  # degrees of elevation above which a camera looks from overhead
    front_threshold: float = 45.0  # degrees of azimuth on both sides of the front
    back_threshold: float = 45.0  # degrees of azimuth on both sides of the back
    view_dependent_prompt_front: bool = False  # "front view of X" in place of "X, front view"

    use_perp_neg: bool = False
    # a, b, c of a exp(-b r) + c: how strongly a view is pushed away between two views
    perp_neg_f_sb: tuple[float, float, float] = (1, 0.5, -0.606)  # side, between side and back
    perp_neg_f_fsb: tuple[float, float, float] = (1, 0.5, +0.967)  # front, between side and back
    perp_neg_f_fs: tuple[float, float, float] = (4, 0.5, -2.426)  # front, between front and side
    perp_neg_f_sf: tuple[float, float, float] = (4, 0.5, -2.426)  # side, between front and side


def wrap_azimuth(azimuth: Tensor) -> Tensor:
    """Degrees, brought into [-180, 180)."""
    return torch.remainder(azimuth + 180.0, 360.0) - 180.0


def view_directions(cfg: ViewKeys) -> list[DirectionConfig]:
    """The four views; where the conditions of several hold, the last one counts."""

    def view(name: str, prefix: str, condition: ViewCondition) -> DirectionConfig:
        def prompt(plain: str) -> str:
            return f"{prefix} view of {plain}" if cfg.view_dependent_prompt_front else f"{plain}, {name} view"

        return DirectionConfig(name, prompt, lambda plain: plain, condition)

    return [
        view("side", "side", lambda ele, azi, dis: torch.ones_like(ele, dtype=torch.bool)),
        view("front", "front", lambda ele, azi, dis: wrap_azimuth(azi).abs() < cfg.front_threshold),
        view("back", "backside", lambda ele, azi, dis: wrap_azimuth(azi).abs() > 180 - cfg.back_threshold),
        view("overhead", "overhead", lambda ele, azi, dis: ele > cfg.overhead_threshold),
    ]


def direction_index(
    directions: Sequence[DirectionConfig],
    elevation: Tensor,  # [B]
    azimuth: Tensor,  # [B]
    camera_distances: Tensor,  # [B]
) -> Tensor:
    """The view that each camera sees: the last one whose condition holds. Returns [B], int64."""
    index = torch.zeros_like(elevation, dtype=torch.long)
    for number, direction in enumerate(directions):
        index[direction.condition(elevation, azimuth, camera_distances)] = number
    return index


def shifted_exponential_decay(a: float, b: float, c: float, r: Tensor) -> Tensor:
    """a exp(-b r) + c."""
    return a * torch.exp(-b * r) + c


def perp_neg_embeddings(
    views: Tensor,  # [B, 4, N, D], of each camera's prompt
    unconditional: Tensor,  # [B, N, D]
    azimuth: Tensor,  # [B]
    overhead: Tensor,  # [B], bool: cameras that see the overhead view
    decays: ViewKeys,  # or what else has its keys perp_neg_f_*
) -> tuple[Tensor, Tensor]:
    """Perp-Neg between views (Armandpour et al. 2023, arXiv 2304.04968, section 4.2), with B cameras.

    From front to side (|azimuth| < 90) the share r of the view nearer to the front falls from 1 to 0, and from side to
    back again.

    Returns:
        [4B, N, D]: B positive ones, each a blend of the two views that it lies between; B unconditional ones; and
        2B negative ones ordered by camera (b0 k0), (b0 k1), (b1 k0), ...;
        [B, 2]: the weights of the negatives, at most 0 where they push away. An overhead camera has its own view, and
        pushes nothing away: its negatives are unconditional, with weights of 0.
    """
    rows = torch.arange(views.shape[0], device=views.device)
    angle = wrap_azimuth(azimuth).abs()
    facing = angle < 90.0
    share = torch.where(facing, 1.0 - angle / 90.0, 2.0 - angle / 90.0)
    nearer, farther = views[rows, torch.where(facing, FRONT, SIDE)], views[rows, torch.where(facing, SIDE, BACK)]
    blend = share.view(-1, 1, 1).to(views)
    positive = torch.where(overhead.view(-1, 1, 1), views[:, OVERHEAD], blend * nearer + (1.0 - blend) * farther)
    negative = torch.stack([nearer, views[rows, torch.where(facing, SIDE, FRONT)]], dim=1)
    negative = torch.where(overhead.view(-1, 1, 1, 1), unconditional[:, None], negative)
    decay = shifted_exponential_decay
    strengths = [
        torch.where(facing, decay(*decays.perp_neg_f_fs, share), decay(*decays.perp_neg_f_sb, share)),
        torch.where(facing, decay(*decays.perp_neg_f_sf, 1.0 - share), decay(*decays.perp_neg_f_fsb, share)),
    ]
    weights = torch.where(overhead.view(-1, 1), 0.0, -torch.stack(strengths, dim=1))
    return torch.cat([positive, unconditional, negative.flatten(0, 1)]), weights
