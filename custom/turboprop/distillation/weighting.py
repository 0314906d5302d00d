"""The weight w(t) of a distillation gradient."""

from torch import Tensor

from threestudio.utils.errors import UserError

WEIGHTING_STRATEGIES = ("sds", "uniform", "fantasia3d", "unified_dreamfusion", "unified_fantasia3d")


def weight(
    alphas_cumprod: Tensor,  # [T]
    timesteps: Tensor,  # [B]
    strategy: str,
) -> Tensor:
    """w(t), shape [B, 1, 1, 1].

    sds: 1 - abar_t = s_t^2 (DreamFusion, Poole et al. 2022). uniform: 1.
    fantasia3d: sqrt(abar_t) (1 - abar_t) (Fantasia3D, Chen et al. 2023, its strategy for appearance).
    unified_dreamfusion, unified_fantasia3d: sds and fantasia3d with the signal level sqrt(abar_t) in abar_t's place, as
    threestudio's unified guidances compute them.
    """
    abar = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    if strategy == "sds":
        return 1.0 - abar
    if strategy == "uniform":
        return abar.new_ones(()).expand_as(abar)
    if strategy == "fantasia3d":
        return abar.sqrt() * (1.0 - abar)
    if strategy == "unified_dreamfusion":
        return 1.0 - abar.sqrt()
    if strategy == "unified_fantasia3d":
        return abar**0.25 * (1.0 - abar.sqrt())
    raise UserError(f"weighting_strategy: expected one of {', '.join(WEIGHTING_STRATEGIES)}, got {strategy!r}")
