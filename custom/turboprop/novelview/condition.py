"""What a novel-view model is asked about: the input view's latent, its tokens and its features, sample by sample."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NovelViewCondition:
    """The condition of B samples, ready for the UNet."""

    latents: Tensor  # [B, 4, h, w], of the input view, in the unit that the model takes
    tokens: Tensor  # [B, N, D], for cross-attention: the input view and the relative camera
    features: tuple[Tensor, ...] = ()  # [B, C_i, h_i, w_i], added to the UNet's down path; none: the model has no such

    def cat(self, others: Sequence["NovelViewCondition"]) -> "NovelViewCondition":
        everything = [self, *others]
        if len({len(one.features) for one in everything}) > 1:
            counts = sorted({len(one.features) for one in everything})
            raise ValueError(f"conditions with {counts} features do not join")
        return NovelViewCondition(
            torch.cat([one.latents for one in everything]),
            torch.cat([one.tokens for one in everything]),
            tuple(torch.cat(maps) for maps in zip(*(one.features for one in everything))),
        )

    def take(self, count: int) -> "NovelViewCondition":
        return NovelViewCondition(
            self.latents[:count], self.tokens[:count], tuple(maps[:count] for maps in self.features)
        )

    def __len__(self) -> int:
        return self.latents.shape[0]

    def without_image(self) -> "NovelViewCondition":
        """The null condition: zeros in place of latents, projected tokens and projected features."""
        return NovelViewCondition(
            torch.zeros_like(self.latents),
            torch.zeros_like(self.tokens),
            tuple(torch.zeros_like(maps) for maps in self.features),
        )


@dataclass(frozen=True)
class ConditionDropout:
    """Which samples lose which part of their condition, for classifier-free guidance."""

    image: Tensor  # [B] bool: tokens and features are left out
    latents: Tensor  # [B] bool: the input view's latent is left out


def draw_condition_dropout(uniform: Tensor, probability: float) -> ConditionDropout:  # [B] in [0, 1)
    """zero-1-to-3's rule with one draw u a sample: the image's tokens go where u < 2p, its latent where p <= u < 3p.

    So tokens alone, both, and the latent alone go with probability p each. Raises ValueError for p outside of [0, 1/3].
    """
    if not 0.0 <= probability <= 1.0 / 3.0:
        raise ValueError(f"condition_dropout: expected a number within 0 to 1/3, got {probability}")
    image = uniform < 2.0 * probability
    latents = (uniform >= probability) & (uniform < 3.0 * probability)
    return ConditionDropout(image, latents)


def keep_where(kept: Tensor, values: Tensor) -> Tensor:  # [B] bool, [B, ...]
    """The values of the kept samples, zeros of the others. Returns [B, ...]."""
    return values * kept.to(values.dtype).view(-1, *(1,) * (values.ndim - 1))
