"""Distillation methods: pure functions of a `Query` that return a gradient at the latents.

All are `(Query) -> Distillation`, so that one can stand in another's place. Each asks the teacher once, for all its
branches together. They differ in one thing, what they subtract from the guided score, `first`:

    SDS  the noise itself                         (DreamFusion, Poole et al. 2022, arXiv 2209.14988)
    CSD  the unconditional score at t             (Classifier Score Distillation, Yu et al. 2023, arXiv 2310.19415)
    normalised CSD: the conditional score at t, by the distance to the clean latents (TriplaneTurbo, Ma et al. 2025)
    ASD  the conditional score at t' > t          (ScaleDreamer, Ma et al. 2024, arXiv 2407.02040)
    SJC  nothing, or the noise                    (Score Jacobian Chaining, Wang et al. 2022, arXiv 2212.00774)
    VSD  the renders' score, by a second teacher  (ProlificDreamer, Wang et al. 2023, arXiv 2305.16213)
VSD takes its second teacher by keyword; with that bound it has the signature. SDI (inversion.py) differs in its noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from ..teachers.contract import ConditionT, Teacher
from ..teachers.noise_schedule import remove_noise, signal_and_noise_level
from .weighting import weight


@dataclass(frozen=True)
class Distillation:
    """What a method answers."""

    gradient: Tensor  # [B, C, h, w], at the latents
    guided_noise: Tensor  # [B, C, h, w], the teacher's guided estimate of the noise at t
    scalars: dict[str, Tensor]  # to log
    noisy: Tensor  # [B, C, h, w], the latents at t
    # [B, C, h, w], the noise at t as the renders' own score has it; None: the noise that was added
    render_noise: Tensor | None = None


@dataclass(frozen=True)
class Negatives(Generic[ConditionT]):
    """What perp-neg pushes away from: K conditions for each of B samples."""

    condition: ConditionT  # of B * K samples, ordered (b0 k0), (b0 k1), (b1 k0), ...
    weights: Tensor  # [B, K], <= 0: how far each pushes away

    def take(self, count: int) -> "Negatives[ConditionT]":
        """The negatives of the first `count` samples."""
        weights = self.weights[:count]
        return Negatives(self.condition.take(weights.numel()), weights)


@dataclass(frozen=True)
class Conditions(Generic[ConditionT]):
    """What the teacher is asked about each of B latents."""

    positive: ConditionT  # of B samples
    unconditional: ConditionT  # of B samples
    negatives: Negatives[ConditionT] | None = None  # perp-neg's; None: the step has none

    def take(self, count: int) -> "Conditions[ConditionT]":
        """The conditions of the first `count` samples."""
        negatives = None if self.negatives is None else self.negatives.take(count)
        return Conditions(self.positive.take(count), self.unconditional.take(count), negatives)


@dataclass(frozen=True)
class Query:
    """What a step asks of a method: B latents, what the teacher is told about them, and the step's draws."""

    teacher: Teacher
    latents: Tensor  # [B, C, h, w]
    conditions: Conditions
    timesteps: Tensor  # [B], t
    noise: Tensor  # [B, C, h, w], the same at t and t'
    shifted_timesteps: Tensor  # [B], t' >= t, of ASD and SDI alone
    guidance_scale: float
    weighting: str = "sds"  # w(t), see `weighting.weight`; SDI and normalised CSD have none

    def noisy(self) -> Tensor:
        """The latents at t, [B, C, h, w]."""
        return self.teacher.add_noise(self.latents, self.noise, self.timesteps)

    def ask(self) -> "Scores":
        """The teacher's answers at t."""
        return ask_teacher(self.teacher, self.noisy(), self.conditions, self.timesteps, self.guidance_scale)

    def clean(self, noisy: Tensor, epsilon: Tensor) -> Tensor:  # both [B, C, h, w], at t
        """The clean latents that a noise implies, [B, C, h, w]."""
        return remove_noise(noisy, epsilon, self.timesteps, self.teacher.alphas_cumprod)

    def levels(self) -> tuple[Tensor, Tensor]:
        """a_t and s_t, each [B, 1, 1, 1]."""
        return signal_and_noise_level(self.teacher.alphas_cumprod, self.timesteps)

    def weights(self) -> Tensor:
        """w(t), [B, 1, 1, 1]."""
        return weight(self.teacher.alphas_cumprod, self.timesteps, self.weighting)


Method = Callable[[Query], Distillation]


def classifier_free(
    positive: Tensor,  # [B, C, h, w]
    unconditional: Tensor,  # [B, C, h, w]
    guidance_scale: float,
) -> Tensor:
    """eps_u + s (eps_c - eps_u), so that s = 1 is the conditional (Ho and Salimans 2022, arXiv 2207.12598)."""
    return unconditional + guidance_scale * (positive - unconditional)


def perp_neg(
    positive: Tensor,  # [B, C, h, w]
    unconditional: Tensor,  # [B, C, h, w]
    negatives: Tensor,  # [B, K, C, h, w]
    negative_weights: Tensor,  # [B, K]
    guidance_scale: float,
) -> Tensor:
    """Perp-Neg (Armandpour et al. 2023, arXiv 2304.04968, equation 8). Returns [B, C, h, w].

    eps_u + s [d + sum_k w_k perp(d_k; d)], with d = eps_c - eps_u, d_k = eps_k - eps_u, and perp(d_k; d) the part of
    d_k that is orthogonal to d within the sample.
    """
    main = (positive - unconditional)[:, None]  # [B, 1, C, h, w]
    away = negatives - unconditional[:, None]
    squared = (main * main).sum((2, 3, 4), keepdim=True).clamp(min=1e-12)
    along = (away * main).sum((2, 3, 4), keepdim=True) / squared
    weights = negative_weights.to(away).view(*negative_weights.shape, 1, 1, 1)
    pushes = (weights * (away - along * main)).sum(dim=1)
    return unconditional + guidance_scale * (main[:, 0] + pushes)


@dataclass(frozen=True)
class Scores:
    """The teacher's answers to one batched question, each [B, C, h, w]."""

    noisy: Tensor  # what it was asked about, at t
    first: Tensor  # guided, at t
    positive: Tensor  # conditional, at t
    unconditional: Tensor  # at t
    later: tuple[Tensor, ...]  # conditional, one for each later question


def ask_teacher(
    teacher: Teacher,
    noisy: Tensor,  # [B, C, h, w], at t
    conditions: Conditions,
    timesteps: Tensor,  # [B]
    guidance_scale: float,
    later: Sequence[tuple[Tensor, Tensor]] = (),  # latents [B, C, h, w] at t', and t' [B], to ask about as well
) -> Scores:
    """One call of the teacher: over 2B latents, B more for each t', and B * K more for perp-neg."""
    batch_size = noisy.shape[0]
    inputs, times = [noisy, noisy], [timesteps, timesteps]
    asked = [conditions.positive, conditions.unconditional]
    for later_noisy, later_timesteps in later:
        inputs.append(later_noisy)
        times.append(later_timesteps)
        asked.append(conditions.positive)
    if conditions.negatives is not None:
        count = conditions.negatives.weights.shape[1]
        inputs.append(noisy.repeat_interleave(count, dim=0))
        times.append(timesteps.repeat_interleave(count, dim=0))
        asked.append(conditions.negatives.condition)
    answers = teacher.predict_noise(torch.cat(inputs), torch.cat(times), asked[0].cat(asked[1:]))
    branches = answers.split([part.shape[0] for part in inputs])
    positive, unconditional = branches[0], branches[1]
    if conditions.negatives is None:
        first = classifier_free(positive, unconditional, guidance_scale)
    else:
        negatives = branches[-1].unflatten(0, (batch_size, -1))
        first = perp_neg(positive, unconditional, negatives, conditions.negatives.weights, guidance_scale)
    return Scores(noisy, first, positive, unconditional, tuple(branches[2 : 2 + len(later)]))


def guided_noise(
    teacher: Teacher,
    conditions: Conditions,
    guidance_scale: float,
    noisy: Tensor,  # [B, C, h, w]
    timesteps: Tensor,  # [B]
) -> Tensor:
    """The teacher's guided estimate of the noise, [B, C, h, w]; samplers take it with the first three bound."""
    return ask_teacher(teacher, noisy, conditions, timesteps, guidance_scale).first


def sds_gradient(query: Query) -> Distillation:
    """w(t) (first - eps): Score Distillation Sampling (DreamFusion, equation 3)."""
    scores = query.ask()
    return _weighted(query, scores, scores.first - query.noise)


def csd_gradient(query: Query) -> Distillation:
    """w(t) (first - eps_u) = w(t) s (eps_c - eps_u): the classifier score alone (CSD, equation 8)."""
    scores = query.ask()
    return _weighted(query, scores, scores.first - scores.unconditional)


# Keeps the step finite where the render is its own guided clean latents already.
SMALLEST_DISTANCE = 0.1


def normalized_csd_gradient(query: Query) -> Distillation:
    """(z_c - z_hat) / (mean |z - z_hat| + 0.1), z_c and z_hat being the clean latents of eps_c and of the guided score.

    z_c - z_hat = (s_t / a_t) (first - eps_c): a classifier score in the unit of clean latents (TriplaneTurbo, Ma et al.
    2025, arXiv 2503.21694). The distance, a mean over each sample, makes steps of all noise levels alike, as in
    Distribution Matching Distillation (Yin et al. 2023, arXiv 2311.18828, equation 8).
    """
    scores = query.ask()
    distance = (query.latents - query.clean(scores.noisy, scores.first)).abs().mean(dim=(1, 2, 3), keepdim=True)
    signal, level = query.levels()
    difference = scores.first - scores.positive
    gradient = (level / signal).to(difference) * difference / (distance + SMALLEST_DISTANCE)
    scalars = {**norms(scores, difference), "clean_distance": distance.mean()}
    return Distillation(gradient, scores.first, scalars, scores.noisy)


def asd_gradient(query: Query) -> Distillation:
    """w(t) (first - eps_c(x_t', t')): Asynchronous Score Distillation (ScaleDreamer, its gradient of L_ASD).

    The second branch is conditional only, without guidance, and stands for the score of the renders themselves:
    a later timestep's prediction error is nearer to theirs. With t' = t it is w(t) (s - 1) (eps_c - eps_u).
    """
    later = query.shifted_timesteps
    noisy_later = query.teacher.add_noise(query.latents, query.noise, later)
    asked = (query.noisy(), query.conditions, query.timesteps, query.guidance_scale, [(noisy_later, later)])
    scores = ask_teacher(query.teacher, *asked)
    (renders_score,) = scores.later
    return _weighted(query, scores, scores.first - renders_score)


def sjc_gradient(query: Query) -> Distillation:
    """w(t) first: Score Jacobian Chaining without variance reduction (its "perturb-and-average" score, equation 9).

    With sigma = s_t / a_t and the noisy latent z = x + sigma eps, the estimate is (z - D(z)) / sigma with the denoiser
    D(z) = z - sigma first. With variance reduction it is (x - D(z)) / sigma = first - eps, which is `sds_gradient`.
    """
    scores = query.ask()
    return _weighted(query, scores, scores.first)


def vsd_gradient(
    query: Query,
    *,
    render_teacher: Teacher,  # of the renders' distribution, with the teacher's schedule
    render_conditions: Conditions,  # what it is asked about the B latents
    render_guidance_scale: float = 1.0,
) -> Distillation:
    """w(t) (first - eps_phi): Variational Score Distillation (ProlificDreamer, equation 9).

    eps_phi is the noise by the score of the renders themselves. With their exact score the gradient's mean is that of
    the KL divergence from the renders, noised to t, to the guided teacher, times w(t) s_t / a_t.
    """
    scores = query.ask()
    noisy, timesteps = scores.noisy, query.timesteps
    if render_guidance_scale == 1.0:  # then the unconditional answer has no part in it
        render_noise = render_teacher.predict_noise(noisy, timesteps, render_conditions.positive)
    else:
        render_noise = ask_teacher(render_teacher, noisy, render_conditions, timesteps, render_guidance_scale).first
    return _weighted(query, scores, scores.first - render_noise, render_noise)


def norms(scores: Scores, difference: Tensor) -> dict[str, Tensor]:
    """Figures to log of each method."""
    return {
        "classifier_norm": (scores.positive - scores.unconditional).norm(),
        "difference_norm": difference.norm(),
    }


def _weighted(query: Query, scores: Scores, difference: Tensor, render_noise: Tensor | None = None) -> Distillation:
    weights = query.weights().to(difference)
    return Distillation(weights * difference, scores.first, norms(scores, difference), scores.noisy, render_noise)


METHODS: dict[str, Method] = {
    "sds": sds_gradient,
    "csd": csd_gradient,
    "normalized_csd": normalized_csd_gradient,
    "asd": asd_gradient,
    "sjc": sjc_gradient,
}
