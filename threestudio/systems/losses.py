"""Losses on what a renderer gives, as pure functions; systems choose among them and weigh them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from threestudio.models.mesh import Mesh
from threestudio.systems.loss_weights import LossWeights
from threestudio.utils.errors import UserError
from threestudio.utils.ops import binary_cross_entropy, dot

Weight = Callable[[str], float]  # the weight now of the loss `loss_X`, by X; 0 where none is set


# ------------------------------------------------------------------------------- of volume renders


def orientation_loss(
    weights: Tensor,  # [N, 1], of samples along rays
    normal: Tensor,  # [N, 3]
    directions: Tensor,  # [N, 3], from the camera
    n_rays: Tensor,  # [], those that hit something
) -> Tensor:
    """Visible normals that face away from the camera (Ref-NeRF, Verbin et al. 2022, eq. 11)."""
    facing_away = dot(normal, directions).clamp(min=0.0) ** 2
    return (weights.detach() * facing_away).sum() / n_rays


def sparsity_loss(opacity: Tensor) -> Tensor:  # [B, H, W, 1] -> []
    """Pulls opacity to zero where nothing holds it up (DreamFusion, Poole et al. 2022, appendix A.2)."""
    return (opacity**2 + 0.01).sqrt().mean()


def opaque_loss(opacity: Tensor) -> Tensor:  # [B, H, W, 1] -> []
    """Binary entropy of opacity: each ray is opaque or empty (Latent-NeRF, Metzer et al. 2022, section 4)."""
    clamped = opacity.clamp(1.0e-3, 1.0 - 1.0e-3)
    return binary_cross_entropy(clamped, clamped)


def z_variance_loss(
    z_variance: Tensor,  # [B, H, W, 1], world units squared
    opacity: Tensor,  # [B, H, W, 1]
) -> Tensor:
    """Spread of the depth along rays that hit something (HiFA, Zhu and Zhuang 2023, eq. 11)."""
    opaque = opacity > 0.5
    if not bool(opaque.any()):
        return z_variance.sum() * 0.0
    return z_variance[opaque].mean()


def volume_losses(out: dict, weight: Weight) -> dict[str, Tensor]:
    """The regularizers of a volume render that have a weight; sparsity and opaque always, as figures to watch."""
    losses = {}
    if weight("orient") > 0:
        if "normal" not in out:
            raise UserError("loss.lambda_orient needs normals: set a normal_type of the geometry")
        n_rays = (out["opacity"] > 0).sum().clamp(min=1)
        losses["loss_orient"] = orientation_loss(out["weights"], out["normal"], out["t_dirs"], n_rays)
    losses["loss_sparsity"] = sparsity_loss(out["opacity"])
    losses["loss_opaque"] = opaque_loss(out["opacity"])
    if weight("z_variance") > 0:
        losses["loss_z_variance"] = z_variance_loss(out["z_variance"], out["opacity"])
    return losses


VOLUME_WEIGHTS = LossWeights(("lambda_orient", "lambda_sparsity", "lambda_opaque"), ("lambda_z_variance",))


# ---------------------------------------------------------------------- of signed distance fields


def eikonal_loss(sdf_grad: Tensor) -> Tensor:  # [N, 3] -> []
    """A distance grows by one for each unit of length (IGR, Gropp et al. 2020, eq. 3)."""
    return ((sdf_grad.norm(dim=-1) - 1.0) ** 2).mean()


# ---------------------------------------------------------------------------------- of meshes


def surface_losses(
    mesh: Mesh,
    weight: Weight,
    opacity: Tensor | None = None,  # [B, H, W, 1], of a render of the mesh
) -> dict[str, Tensor]:
    """Smoothness of a mesh: normals that agree along edges, and vertices near the centre of their neighbours.

    With `opacity` also sparsity, where that has a weight.
    """
    losses = {"loss_normal_consistency": mesh.normal_consistency()}
    if weight("laplacian_smoothness") > 0:
        losses["loss_laplacian_smoothness"] = mesh.laplacian()
    # Matter that took the background's colour, as between legs, is found by no picture: this wears it off.
    if opacity is not None and weight("sparsity") > 0:
        losses["loss_sparsity"] = sparsity_loss(opacity)
    return losses


SURFACE_WEIGHTS = LossWeights(("lambda_normal_consistency",), ("lambda_laplacian_smoothness",))


# ------------------------------------------------------- of systems in two stages, a field and its mesh


def scene_weights(refinement: bool) -> LossWeights:
    """Weights of the losses of a stage, and of the other one's, which may stand in one config with them."""
    own, other = (SURFACE_WEIGHTS, VOLUME_WEIGHTS) if refinement else (VOLUME_WEIGHTS, SURFACE_WEIGHTS)
    return own.with_(optional=other.keys)


def scene_losses(out: dict, refinement: bool, weight: Weight) -> dict[str, Tensor]:
    """The regularizers of a stage's render: of the mesh with `refinement`, else of the field."""
    return surface_losses(out["mesh"], weight, out["opacity"]) if refinement else volume_losses(out, weight)


# ----------------------------------------------------------------------- of single methods


def emptiness_loss(
    weights: Tensor,  # [N, 1], of samples along rays
    scale: float,
) -> Tensor:
    """Mean of log(1 + scale w): few samples weigh anything (SJC, Wang et al. 2022, section 5.2)."""
    return torch.log1p(scale * weights).mean()


def center_depth_loss(
    depth: Tensor,  # [B, H, W], world units, background included
    center_ratio: float,  # of the sides, in (0, 1)
) -> Tensor:
    """The middle of the image lies nearer than its border (SJC, Wang et al. 2022, section 5.2).

    sign(d) log|d| of the difference d of their mean depths falls wherever d does, but at d = 0.
    """
    height, width = depth.shape[-2:]
    rows, columns = int(center_ratio * height), int(center_ratio * width)
    top, left = (height - rows) // 2, (width - columns) // 2
    inside = torch.zeros(height, width, dtype=torch.bool, device=depth.device)
    inside[top : top + rows, left : left + columns] = True
    difference = depth[..., inside].mean() - depth[..., ~inside].mean()
    return difference.sign() * (difference.abs() + 1e-12).log()


def convexity_loss(
    normal: Tensor,  # [B, H, W, 3], composited, in [0, 1]
    resolution: int,  # side of the coarse image that is looked at
) -> Tensor:
    """Normals turn outwards from pixel to pixel (the convexity term of SDI, Lukoianov et al. 2024).

    The third component of the cross product of neighbouring normals, left to right and bottom to top, is the
    sine of the turn about that axis; its mean is to grow.
    """
    size = (resolution, resolution)
    coarse = F.interpolate(normal.permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False)
    coarse = coarse.permute(0, 2, 3, 1)
    across = torch.cross(coarse[:, :, :-1], coarse[:, :, 1:], dim=-1)[..., 2]
    upwards = torch.cross(coarse[:, 1:], coarse[:, :-1], dim=-1)[..., 2]
    return -(across.mean() + upwards.mean())
