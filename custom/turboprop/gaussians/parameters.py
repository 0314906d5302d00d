"""The trainable numbers of 3D Gaussians, and what they stand for.

Unbounded numbers are trained: the logarithm of scales, the logit of opacities, quaternions of any length, coefficients
of spherical harmonics (Kerbl et al. 2023, 3D Gaussian Splatting, section 4 and 5.1).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .spherical_harmonics import rgb_to_sh, sh_size, sh_to_rgb

# name: shape of one Gaussian's part; sh_rest has sh_size(degree) - 1 rows, none at degree 0; normals are optional
SHAPES = {
    "means": (3,),  # world units
    "log_scales": (3,),  # log of the standard deviation along each own axis
    "quaternions": (4,),  # wxyz
    "opacity_logits": (),
    "sh_dc": (1, 3),  # degree 0
    "sh_rest": (-1, 3),  # degrees 1 and up, in the order l = 1: -1, 0, 1; l = 2: -2, ...
    "normals": (3,),
}

# What a file's infinite opacity logit becomes: an opacity of 0.99995, which still has a gradient.
LARGEST_LOGIT = 10.0
# What a file's log scale of minus infinity, of a Gaussian that is flat, becomes: a millionth of a world unit.
LEAST_LOG_SCALE = math.log(1e-6)
# What a file's larger log scales become: a million world units, whose square is still a number of float32.
LARGEST_LOG_SCALE = math.log(1e6)

Parameters = dict[str, Tensor]  # each [N, ...]


class Gaussians(NamedTuple):
    """N Gaussians as a rasterizer takes them; colours come by the view, from ``spherical_harmonics``."""

    means: Tensor  # [N, 3]
    scales: Tensor  # [N, 3] > 0
    quaternions: Tensor  # [N, 4] wxyz, not normalized
    opacities: Tensor  # [N] in (0, 1)
    sh: Tensor  # [N, K, 3]


def activate(
    parameters: Parameters, isotropic: bool = False, color_clip: float = float("inf"), smoothing: float = 0.0
) -> Gaussians:
    """Raw parameters -> Gaussians.

    isotropic: one scale for all axes, the geometric mean. color_clip: largest absolute coefficient of degree 0.
    smoothing: standard deviation of a round Gaussian that each is convolved with, world units, at least 0.
    """
    sh = parameters["sh_dc"].clamp(-color_clip, color_clip)
    if "sh_rest" in parameters:
        sh = torch.cat([sh, parameters["sh_rest"]], 1)
    return Gaussians(
        parameters["means"],
        _scales(parameters["log_scales"], isotropic, smoothing),
        parameters["quaternions"],
        torch.sigmoid(parameters["opacity_logits"]),
        sh,
    )


def _scales(log_scales: Tensor, isotropic: bool, smoothing: float) -> Tensor:
    """Standard deviations [N, 3]. Variances add up where Gaussians are convolved."""
    if isotropic:
        log_scales = log_scales.mean(-1, keepdim=True).expand(-1, 3)
    if smoothing == 0:
        return log_scales.exp()
    return ((2 * log_scales).exp() + smoothing**2).sqrt()


def from_points(
    points: Tensor,  # [N, 3] world units
    colors: Tensor,  # [N, 3] in [0, 1]
    spacing: Tensor,  # [N] standard deviations, > 0
    opacity: float,  # in (0, 1)
    sh_degree: int,  # 0 to 3
    normals: bool = False,
) -> Parameters:
    """Round Gaussians at points (Kerbl et al. 2023, section 5.1)."""
    n = points.shape[0]
    parameters = {
        "means": points.clone(),
        "log_scales": spacing.log()[:, None].repeat(1, 3),
        "quaternions": points.new_tensor([1.0, 0.0, 0.0, 0.0]).repeat(n, 1),
        "opacity_logits": torch.logit(points.new_full((n,), opacity)),
        "sh_dc": rgb_to_sh(colors)[:, None],
    }
    if sh_degree > 0:
        parameters["sh_rest"] = points.new_zeros(n, sh_size(sh_degree) - 1, 3)
    if normals:
        parameters["normals"] = outward(points)
    return parameters


def outward(points: Tensor) -> Tensor:
    """Unit vectors [N, 3] from the middle of the points."""
    return torch.nn.functional.normalize(points - points.mean(0), dim=-1)


def base_colors(parameters: Parameters, color_clip: float = float("inf")) -> Tensor:
    """[N, 3] in [0, 1]: colours without what depends on the view."""
    return sh_to_rgb(parameters["sh_dc"][:, 0].clamp(-color_clip, color_clip)).clamp(0, 1)


def with_sh_degree(parameters: Parameters, sh_degree: int) -> Parameters:
    """These Gaussians with more degrees (zeros) or fewer."""
    rows = sh_size(sh_degree) - 1
    result = {name: value for name, value in parameters.items() if name != "sh_rest"}
    if rows > 0:
        n = result["means"].shape[0]
        rest = parameters.get("sh_rest", result["means"].new_zeros(n, 0, 3))[:, :rows]
        missing = rest.new_zeros(n, rows - rest.shape[1], 3)
        result["sh_rest"] = torch.cat([rest, missing], 1)
    return result


def with_normals(parameters: Parameters, wanted: bool) -> Parameters:
    """These Gaussians with normals (outward where they had none) or without."""
    result = {name: value for name, value in parameters.items() if name != "normals"}
    if wanted:
        result["normals"] = parameters["normals"] if "normals" in parameters else outward(parameters["means"])
    return result


def effective(parameters: Parameters, isotropic: bool, color_clip: float, smoothing: float) -> Parameters:
    """Raw parameters that mean the same without the options of ``activate``."""
    result = {**parameters, "sh_dc": parameters["sh_dc"].clamp(-color_clip, color_clip)}
    if isotropic or smoothing > 0:
        result["log_scales"] = _scales(parameters["log_scales"], isotropic, smoothing).log()
    return result


def shape_of(name: str, n: int, sh_degree: int) -> tuple:
    """Full shape of a parameter of n Gaussians."""
    return (n, *(sh_size(sh_degree) - 1 if size == -1 else size for size in SHAPES[name]))


def parameter_names(sh_degree: int, normals: bool) -> list[str]:
    left_out = ([] if sh_degree > 0 else ["sh_rest"]) + ([] if normals else ["normals"])
    return [name for name in SHAPES if name not in left_out]
