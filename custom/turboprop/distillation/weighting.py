"""The weight w(t) of a distillation gradient."""

from torch import Tensor
from threestudio.utils.errors import UserError

WEIGHTING_STRATEGIES = ("sds", "uniform", "fantasia3d")


def weight(
    alphas_cumprod: Tensor,  # [T]
    timesteps: Tensor,  # [B]
    strategy: str,
) -> Tensor:
    """w(t), shape [B, 1, 1, 1].

    sds: 1 - abar_t = s_t^2 (DreamFusion, Poole et al. 2022). uniform: 1.
    fantasia3d: sqrt(abar_t) (1 - abar_t) (Fantasia3D, Chen et al. 2023, its strategy for appearance).
    """
    abar = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    if strategy == "sds":
        return 1.0 - abar
    if strategy == "uniform":
        return abar.new_ones(()).expand_as(abar)
    if strategy == "fantasia3d":
        return abar.sqrt() * (1.0 - abar)
    raise UserError(
        f"weighting_strategy: expected one of {', '.join(WEIGHTING_STRATEGIES)}, got {strategy!r}"
    )
