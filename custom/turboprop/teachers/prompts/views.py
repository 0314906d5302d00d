"""Views of a prompt: which one a camera sees, how it reads, and perp-neg's blends between views.

Pure functions over a batch of cameras, for tables of many prompts. Views stand in threestudio's order: side, front,
back, overhead. Angles are in degrees; azimuth 0 looks at the front.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import threestudio
import torch
from torch import Tensor

from ..token_limit import TokenLimit

SIDE, FRONT, BACK, OVERHEAD = range(4)

Decay = tuple[float, float, float]  # a, b, c of a exp(-b r) + c


@dataclass(frozen=True)
class ViewThresholds:
    front: float = 45.0  # azimuth within this of the front
    back: float = 45.0  # azimuth within this of the back
    overhead: float = 60.0  # elevation above this


@dataclass(frozen=True)
class PerpNegDecays:
    """How strongly a view is pushed away between two views, of the camera's place r between them."""

    side_back: Decay = (1.0, 0.5, -0.606)  # side, between side and back
    front_side_back: Decay = (1.0, 0.5, 0.967)  # front, between side and back
    front_side: Decay = (4.0, 0.5, -2.426)  # front, between front and side
    side_front: Decay = (4.0, 0.5, -2.426)  # side, between front and side


@dataclass(frozen=True)
class PerpNegBlend:
    """For each of B cameras: the two views that it lies between, and the two that it is pushed away from."""

    views: Tensor  # [B, 2]
    shares: Tensor  # [B, 2], of sum 1: the positive embedding is the views' sum with these
    negative_views: Tensor  # [B, 2]
    negative_weights: Tensor  # [B, 2], at most 0 where they push away


def view_prompts(prompt: str, view_first: bool = False) -> list[str]:
    """The four view prompts: "X, front view", or "front view of X"."""
    if view_first:
        return [f"{view} view of {prompt}" for view in ("side", "front", "backside", "overhead")]
    return [f"{prompt}, {view} view" for view in ("side", "front", "back", "overhead")]


def shortened_for_views(prompt: str, forms: Sequence[Callable[[str], str]], limit: TokenLimit) -> str:
    """The prompt, or its longest start with which all `forms` of it, one for each view, fit the text model.

    Says so each time that it shortens: the plain prompt and the views then read differently far.
    """
    start = limit.start_that_fits(prompt, forms)
    if start != prompt:
        threestudio.warn(
            f"the prompt is longer than the {limit.tokens} tokens of the text model: prompts of views read "
            f"{forms[0](start)!r}, so that the words for the view are not cut off"
        )
    return start


def warn_of_equal_views(
    names: Sequence[str],  # V
    embeddings: Tensor,  # [V, N, D]
) -> None:
    """Warns of each two views that a teacher cannot tell from one another."""
    for i in range(len(names)):
        for j in range(i):
            if torch.equal(embeddings[i], embeddings[j]):
                both = f"the {names[j]} and the {names[i]} view"
                threestudio.warn(f"{both} have the same embedding: they are one to the teacher")


def wrap_azimuth(azimuth: Tensor) -> Tensor:
    """Degrees, brought into [-180, 180)."""
    return torch.remainder(azimuth + 180.0, 360.0) - 180.0


def view_index(
    elevation: Tensor,  # [B]
    azimuth: Tensor,  # [B]
    thresholds: ViewThresholds,
) -> Tensor:
    """The view that each camera sees. Returns [B], int64."""
    angle = wrap_azimuth(azimuth).abs()
    index = torch.full_like(angle, SIDE, dtype=torch.long)
    index[angle < thresholds.front] = FRONT
    index[angle > 180.0 - thresholds.back] = BACK
    index[elevation > thresholds.overhead] = OVERHEAD
    return index


def perp_neg_blend(
    elevation: Tensor,  # [B]
    azimuth: Tensor,  # [B]
    thresholds: ViewThresholds,
    decays: PerpNegDecays,
) -> PerpNegBlend:
    """Perp-Neg between views (Armandpour et al. 2023, arXiv 2304.04968, section 4.2).

    From front to side (|azimuth| < 90) r falls from 1 to 0, and from side to back again. An overhead camera has its own
    view alone and pushes nothing away.
    """
    angle = wrap_azimuth(azimuth).abs()
    facing = angle < 90.0
    r = torch.where(facing, 1.0 - angle / 90.0, 2.0 - angle / 90.0)

    def choose(if_facing: int, otherwise: int) -> Tensor:
        return torch.where(facing, if_facing, otherwise)

    views = torch.stack([choose(FRONT, SIDE), choose(SIDE, BACK)], dim=1)
    negative_views = torch.stack([choose(FRONT, SIDE), choose(SIDE, FRONT)], dim=1)
    strengths = torch.stack(
        [
            torch.where(facing, _decay(decays.front_side, r), _decay(decays.side_back, r)),
            torch.where(facing, _decay(decays.side_front, 1.0 - r), _decay(decays.front_side_back, r)),
        ],
        dim=1,
    )
    overhead = (elevation > thresholds.overhead)[:, None]
    return PerpNegBlend(
        views=torch.where(overhead, OVERHEAD, views),
        shares=torch.stack([r, 1.0 - r], dim=1),
        negative_views=torch.where(overhead, OVERHEAD, negative_views),
        negative_weights=torch.where(overhead, 0.0, -strengths),
    )


def _decay(coefficients: Decay, r: Tensor) -> Tensor:
    a, b, c = coefficients
    return a * torch.exp(-b * r) + c
