"""Ground-truth measures on pictures: silhouettes, colours, and whether front and back are where they belong."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from threestudio.utils.errors import UserError

COVERED = 0.5  # a pixel belongs to a silhouette above this opacity
CERTAIN_GAIN = 0.25  # share of the way between turned and right at which a view counts in full


def silhouette_iou(alpha: Tensor, coverage: Tensor) -> Tensor:
    """Intersection over union of two silhouettes: alpha, coverage [V, S, S] in [0, 1] -> [V]. Two empty ones give 1."""
    ours, exact = alpha > COVERED, coverage > COVERED
    union = (ours | exact).sum((-2, -1))
    return torch.where(union > 0, (ours & exact).sum((-2, -1)) / union.clamp_min(1), 1.0)


def color_error(rgb: Tensor, alpha: Tensor, exact_rgb: Tensor, coverage: Tensor) -> Tensor:
    """Mean absolute sRGB difference where both silhouettes are: -> [V]; nan where they do not meet.

    rgb, exact_rgb [V, S, S, 3] in [0, 1] on the same background; alpha, coverage [V, S, S].
    """
    both = (alpha > COVERED) & (coverage > COVERED)
    difference = (rgb - exact_rgb).abs().mean(-1) * both
    return difference.sum((-2, -1)) / both.sum((-2, -1))


def picture_distance(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """Mean absolute difference of colour plus that of opacity: (rgb [V, S, S, 3], alpha [V, S, S]) x 2 -> [V]."""
    return ((first[0] - second[0]).abs().mean(-1) + (first[1] - second[1]).abs()).mean((-2, -1))


def front_back_score(rgb: Tensor, alpha: Tensor, right: tuple[Tensor, Tensor], turned: tuple[Tensor, Tensor]) -> float:
    """Whether front and back are where they belong: 1 right, 0 turned by 180 degrees, one half a Janus.

    For each view, g = (d(picture, turned) - d(picture, right)) / d(right, turned) says how
    much nearer the picture is to the right object than to the turned one; by the triangle
    inequality -1 <= g <= 1. The view's verdict goes from 0 at g = -1/4 to 1 at g = 1/4, so
    that blur and small errors of shape, which bring g towards 0, cost little. The score is
    the verdicts' mean, weighted by d(right, turned): views in which front and back hardly
    differ weigh little. A Janus has its front views right and its back views turned, and
    its side views undecided; a shape with no front at all is undecided everywhere. The
    score says something only of kinds whose front and back differ, and only beside the
    IoU: an empty picture gives one half as well.

    rgb [V, S, S, 3], alpha [V, S, S] of what is judged; `right`, `turned`: the same of the
    exact object and of the exact object turned by 180 degrees around the vertical, from
    the same cameras and in the same light. All in [0, 1].
    """
    ours = (rgb, alpha)
    weight = picture_distance(right, turned)  # [V]
    gain = picture_distance(ours, turned) - picture_distance(ours, right)
    verdict = (0.5 + 0.5 * gain / (weight * CERTAIN_GAIN).clamp_min(1e-9)).clamp(0, 1)
    total = weight.sum()
    return float((verdict * weight).sum() / total) if total > 0 else 0.5


def psnr(first: Tensor, second: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures of one shape, in [0, 1]; infinite where they are equal, nan where
    one has a nan."""
    error = float(((first.clamp(0, 1) - second.clamp(0, 1)) ** 2).mean())
    return math.inf if error == 0 else -10.0 * math.log10(error)


def psnr_of_each(pictures: Tensor, truth: Tensor) -> Tensor:
    """The PSNR of each picture, at most 100 dB: pictures, truth [V, 3, S, S] in [0, 1] -> [V]."""
    return torch.tensor([min(psnr(one, other), 100.0) for one, other in zip(pictures.double(), truth.double())])


def structural_similarity_of_each(pictures: Tensor, truth: Tensor) -> Tensor:
    """SSIM (Wang et al. 2004) by scikit-image with a Gaussian window: [V, 3, S, S] x 2 in [0, 1] -> [V]. Raises
    ValueError for pictures smaller than the window, which is 11 pixels wide."""
    from skimage.metrics import structural_similarity

    if min(pictures.shape[-2:]) < 11:
        raise UserError(f"SSIM: expected pictures of at least 11 pixels, got {list(pictures.shape[-2:])}")
    pairs = zip(pictures.double().cpu().numpy(), truth.double().cpu().numpy())
    options = {"channel_axis": 0, "data_range": 1.0, "gaussian_weights": True, "use_sample_covariance": False}
    return torch.tensor([structural_similarity(one, other, **options) for one, other in pairs], dtype=torch.float64)
