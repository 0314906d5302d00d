"""Score distillation through the clean latents that the teacher sees, with rescaled guidance: MVDream's form."""

from torch import Tensor

from .methods import Distillation, Query, norms


def reconstruction_gradient(
    query: Query,
    *,
    n_view: int,  # samples of a set, over which the spread is taken
    std_rescale: float,  # share of the rescaled latents, in [0, 1]
) -> Distillation:
    """z - z_hat: the render goes to the guided clean latents (MVDream, Shi et al. 2023, arXiv 2308.16512, appendix).

    It is SDS with w(t) = s_t / a_t but for the rescaling. Large guidance scales spread z_hat's values out and saturate
    colours, so z_hat is mixed with itself at the spread of the clean latents without guidance (Lin et al. 2023, arXiv
    2305.08891, section 3.4).
    """
    scores = query.ask()
    guided, plain = query.clean(scores.noisy, scores.first), query.clean(scores.noisy, scores.positive)
    factor = (spread(plain, n_view) + 1e-8) / (spread(guided, n_view) + 1e-8)
    target = guided * (1 + std_rescale * (factor - 1))
    signal, level = query.levels()
    gradient = query.latents - target
    scalars = {**norms(scores, gradient), "rescale_factor": factor.mean()}
    return Distillation(gradient, (scores.noisy - signal * target) / level, scalars, scores.noisy)


def spread(latents: Tensor, n_view: int) -> Tensor:  # [S * n_view, C, h, w]
    """The standard deviation over all entries of a set, for each of its views: [S * n_view, 1, 1, 1]."""
    deviation = latents.unflatten(0, (-1, n_view)).flatten(1).std(dim=1)
    return deviation.repeat_interleave(n_view).view(-1, 1, 1, 1)
