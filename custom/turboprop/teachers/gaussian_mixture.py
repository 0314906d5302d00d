"""An analytic teacher: a Gaussian mixture whose score is exact at every noise level.

For research on distillation losses (the truth is known in closed form, a step costs microseconds) and for tests.
The idea of a mixture as an exact denoiser is common; see for instance Karras et al. 2024 (arXiv 2406.02507), section 3.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .contract import Teacher, TextCondition
from .noise_schedule import scaled_linear_alphas_cumprod, signal_and_noise_level


class GaussianMixtureTeacher(Teacher[TextCondition]):
    """Images are drawn from sum_k w_k N(means_k, stds_k^2 I); a condition is the row of weights w.

    A condition is a `TextCondition` with embeddings [B, 1, K]: row b holds the weights of the K components for sample
    b, non-negative and of sum 1. So any convex blend of two conditions, as perp-neg makes, is a condition again.
    Latents are the images themselves.

    Args:
        means: [K, C, S, S], the components' means.
        stds: K numbers, the components' standard deviations (>= 0; 0 is a set of points).
        alphas_cumprod: [T]; None takes latent diffusion's scaled-linear schedule of 1000 steps.
    Raises ValueError for shapes that do not fit together, or a negative standard deviation.
    """

    def __init__(self, means: Tensor, stds: Sequence[float] | Tensor, alphas_cumprod: Tensor | None = None) -> None:
        stds = torch.as_tensor(stds, dtype=means.dtype, device=means.device)
        if means.ndim != 4 or means.shape[-1] != means.shape[-2]:
            raise ValueError(f"means: expected shape [K, C, S, S], got {list(means.shape)}")
        if stds.shape != means.shape[:1]:
            raise ValueError(
                f"stds: expected one number for each of {means.shape[0]} components, got {list(stds.shape)}"
            )
        if (stds < 0).any():
            raise ValueError(f"stds: expected numbers of at least 0, got {stds.tolist()}")
        self.means = means.detach()
        self.stds = stds
        self.latent_channels = means.shape[1]
        self.latent_size = self.image_size = means.shape[-1]
        schedule = scaled_linear_alphas_cumprod() if alphas_cumprod is None else alphas_cumprod
        self.alphas_cumprod = schedule.to(means)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """The images themselves; `noise` has no part in it."""
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def log_density(
        self,
        noisy: Tensor,  # [B, C, S, S]
        timesteps: Tensor,  # [B]
        condition: TextCondition,  # embeddings [B, 1, K]
    ) -> Tensor:
        """log p_t(noisy | condition), differentiable. Returns [B]."""
        log_joint, _, _ = self._log_joint(noisy, timesteps, condition)
        return torch.logsumexp(log_joint, dim=1)

    @torch.no_grad()
    def predict_noise(self, noisy: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
        """The exact eps = -s_t grad log p_t: the mean of the components' own, by their posterior probability."""
        log_joint, offsets, variances = self._log_joint(noisy, timesteps, condition)
        posterior = torch.softmax(log_joint, dim=1)  # [B, K]
        weights = (posterior / variances).view(*posterior.shape, 1, 1, 1)
        _, level = signal_and_noise_level(self.alphas_cumprod, timesteps)
        return (level * (weights * offsets).sum(dim=1)).to(noisy.dtype)

    def _log_joint(self, noisy: Tensor, timesteps: Tensor, condition: TextCondition) -> tuple[Tensor, Tensor, Tensor]:
        """log(w_k N(x; a_t mean_k, v_k)) [B, K], x - a_t mean_k [B, K, C, S, S], v_k = a_t^2 std_k^2 + s_t^2 [B, K]."""
        weights = condition.embeddings[:, 0].to(self.means)  # [B, K]
        signal, level = signal_and_noise_level(self.alphas_cumprod, timesteps, ndim=2)  # [B, 1]
        offsets = noisy[:, None].to(self.means) - signal[..., None, None, None] * self.means
        variances = (signal * self.stds) ** 2 + level**2
        squared = offsets.flatten(2).square().sum(-1)
        dimensions = self.means[0].numel()
        log_normal = -0.5 * squared / variances - 0.5 * dimensions * torch.log(2 * math.pi * variances)
        return weights.log() + log_normal, offsets, variances
