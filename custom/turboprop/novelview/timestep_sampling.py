"""Which timesteps training looks at, how much each counts, and how noisy each is: pure functions.

Every sampler is the inverse of a distribution function on (0, 1), applied to uniform draws. So one draw a sample is all
the randomness there is, and a sampler's distribution can be checked exactly.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import check_choice

LEAST_SHARE = 1e-9  # of a Gaussian that is cut; with less, its inverse distribution function runs out of digits


def uniform_quantile(uniform: Tensor, num_timesteps: int) -> Tensor:  # [B] in (0, 1)
    """Every timestep alike, as DDPM trains. Returns [B] in [0, T)."""
    return uniform * num_timesteps


def truncated_normal_quantile(uniform: Tensor, num_timesteps: int, mean: float, std: float) -> Tensor:  # [B] in (0, 1)
    """A Gaussian cut to [0, T] and renormalised, in units of timesteps. Returns [B].

    Efficient-3DiM (Jiang et al. 2023, arXiv 2310.03015), section 3.2: mean 1000 and std 200 let most steps learn the
    geometry, which is settled at high noise, and leave no timestep out. With Phi the normal distribution function,
    t = mean + std Phi^-1(Phi(a) + u (Phi(b) - Phi(a))), a = -mean / std, b = (T - mean) / std. Raises ValueError where
    next to nothing of the Gaussian lies in [0, T].
    """
    low, high = (0.5 * math.erfc((mean - end) / std / math.sqrt(2.0)) for end in (0.0, num_timesteps))  # Phi
    if high - low < LEAST_SHARE:
        raise UserError(
            f"timesteps.mean, timesteps.std: a share of {LEAST_SHARE:g} or more of the Gaussian has to lie within 0 to "
            f"{num_timesteps} timesteps, got mean {mean:g} and std {std:g}"
        )
    return (mean + std * torch.special.ndtri(low + uniform * (high - low))).clamp(0.0, num_timesteps)


def logit_normal_quantile(uniform: Tensor, num_timesteps: int, mean: float, std: float) -> Tensor:  # [B] in (0, 1)
    """t / T is the logistic function of a Gaussian. Returns [B].

    Esser et al. 2024 (arXiv 2403.03206), section 3.1; a mean above 0 moves it to high noise.
    """
    return num_timesteps * torch.sigmoid(mean + std * torch.special.ndtri(uniform))


Quantile = Callable[[Tensor, int, float, float], Tensor]
SAMPLERS: dict[str, Quantile] = {
    "uniform": lambda uniform, num_timesteps, mean, std: uniform_quantile(uniform, num_timesteps),
    "truncated_normal": truncated_normal_quantile,
    "logit_normal": logit_normal_quantile,
}


@dataclass(frozen=True)
class TimestepSampling:
    """A sampler with its numbers at one training step."""

    sampler: str = "truncated_normal"  # a key of SAMPLERS
    mean: float = 1000.0  # of the Gaussian: timesteps (truncated_normal), or in logit units (logit_normal)
    std: float = 200.0  # likewise
    uniform_share: float = 0.0  # share of the draws that are uniform instead, in [0, 1]

    def check(self, key: str = "timesteps", num_timesteps: int = 1000) -> None:
        """Raises ValueError that names the key, what was expected and what came."""
        check_choice(f"{key}.sampler", self.sampler, SAMPLERS)
        if not self.std > 0:
            raise UserError(f"{key}.std: expected a number above 0, got {self.std}")
        if not 0.0 <= self.uniform_share <= 1.0:
            raise UserError(f"{key}.uniform_share: expected a number within 0 to 1, got {self.uniform_share}")
        timesteps_of(torch.zeros(1), num_timesteps, self)  # raises for a Gaussian that is elsewhere


def timesteps_of(uniform: Tensor, num_timesteps: int, sampling: TimestepSampling) -> Tensor:  # [B] in [0, 1)
    """The timesteps that uniform draws stand for, by a mixture of the sampler and the uniform distribution.

    The lowest `uniform_share` of the draws is stretched over all timesteps, the rest over the sampler's distribution.
    Returns [B], int64, in [0, T - 1].
    """
    draws = uniform.double().clamp(1e-12, 1.0 - 1e-12)  # in float32 the last thousandth of the tail would be steps
    share = sampling.uniform_share
    plain = draws < share
    stretched = torch.where(plain, draws / max(share, 1e-12), (draws - share) / max(1.0 - share, 1e-12))
    stretched = stretched.clamp(1e-12, 1.0 - 1e-12)
    shaped = SAMPLERS[sampling.sampler](stretched, num_timesteps, sampling.mean, sampling.std)
    continuous = torch.where(plain, uniform_quantile(stretched, num_timesteps), shaped)
    return continuous.floor().long().clamp(0, num_timesteps - 1)


def signal_to_noise_ratio(alphas_cumprod: Tensor) -> Tensor:  # [...]
    """abar / (1 - abar). Returns [...]."""
    return alphas_cumprod / (1.0 - alphas_cumprod)


def min_snr_weight(
    alphas_cumprod: Tensor,  # [T]
    timesteps: Tensor,  # [B]
    prediction_type: str,
    gamma: float,
) -> Tensor:
    """Min-SNR weights of the loss in the network's own prediction type. Returns [B].

    Hang et al. 2023 (arXiv 2303.09556), section 3.4: min(SNR, gamma) for the clean sample; divided by SNR for epsilon,
    by SNR + 1 for v.
    """
    ratio = signal_to_noise_ratio(alphas_cumprod[timesteps])
    cut = ratio.clamp(max=gamma)
    divisors = {"sample": torch.ones_like(ratio), "epsilon": ratio, "v_prediction": ratio + 1.0}
    return cut / divisors[prediction_type]


def interpolated_noise_shift(alphas_cumprod: Tensor, scale: float) -> Tensor:  # [T]
    """A schedule whose signal-to-noise ratio is unchanged at t = 0 and `scale` times lower at t = T - 1. Returns [T].

    log SNR'(t) = log SNR(t) - t / (T - 1) log(scale): MV-Adapter (Huang et al. 2024, arXiv 2412.03632) trains with
    scale 8, so that high noise hides the global structure too. Raises ValueError for a scale that is not above 0.
    """
    if not scale > 0:
        raise UserError(f"noise_shift: expected a number above 0, got {scale}")
    share = torch.linspace(0.0, 1.0, len(alphas_cumprod), dtype=torch.float64, device=alphas_cumprod.device)
    log_ratio = torch.logit(alphas_cumprod.double()) - share * math.log(scale)  # log SNR = logit of abar
    return torch.sigmoid(log_ratio).to(alphas_cumprod)
