"""Losses between a render and a picture taken from the same place, as pure functions."""

import torch
import torch.nn.functional as F
from torch import Tensor


def color_loss(
    render: Tensor,  # [B, H, W, 3] in [0, 1]
    background: Tensor,  # [B, H, W, 3], behind the render
    picture: Tensor,  # [B, H, W, 3] in [0, 1]
    mask: Tensor,  # [B, H, W, 1], where the picture shows the object: bool, or in [0, 1]
) -> Tensor:
    """Mean squared difference to the picture, cut out and laid over the render's own background."""
    covered = mask.to(picture)
    return F.mse_loss(render, picture * covered + background * (1 - covered))


def covered_color_loss(render: Tensor, picture: Tensor, mask: Tensor) -> Tensor:  # as of color_loss
    """Mean over all pixels of the squared difference to the picture inside the mask; outside it counts nothing."""
    covered = mask.to(picture)
    return F.mse_loss(render * covered, picture * covered)


def mask_loss(opacity: Tensor, mask: Tensor) -> Tensor:  # both [B, H, W, 1]; a mask is bool, or in [0, 1]
    """Mean squared difference of opacity and mask."""
    return F.mse_loss(opacity, mask.to(opacity))


def mask_cross_entropy(opacity: Tensor, mask: Tensor) -> Tensor:  # both [B, H, W, 1]
    """Mean binary cross entropy of opacity and mask (Magic123, Qian et al. 2023)."""
    with torch.autocast(opacity.device.type, enabled=False):
        probability = opacity.float().clamp(1.0e-5, 1.0 - 1.0e-5)
        return F.binary_cross_entropy(probability, mask.to(probability))


def depth_loss(
    depth: Tensor,  # [B, H, W, 1], of the render
    reference: Tensor,  # [B, H, W, 1], in any unit, from any origin
    mask: Tensor,  # [B, H, W, 1], bool
) -> Tensor:
    """Mean squared difference inside the mask, each reference scaled and shifted to fit best in the least squares.

    As of MiDaS (Ranftl et al. 2020, equations 5 and 6): each picture's depth has a unit and an origin of its own. A
    render that depends on the fit gets no gradient through it.
    """
    differences = []
    for inside, rendered, known in zip(mask, depth.float(), reference.float()):
        rendered, known = rendered[inside], known[inside]  # [N]
        with torch.no_grad():
            design = torch.stack([known, torch.ones_like(known)], dim=-1)
            fitted = design @ torch.linalg.lstsq(design, rendered[:, None]).solution
        differences.append(rendered - fitted[:, 0])
    return torch.cat(differences).square().mean()


def depth_correlation_loss(depth: Tensor, reference: Tensor, mask: Tensor) -> Tensor:  # as of depth_loss
    """One less the correlation (Pearson's) of both depths inside the mask, the mean over the pictures."""
    losses = []
    for inside, rendered, known in zip(mask, depth.float(), reference.float()):
        rendered, known = rendered[inside], known[inside]  # [N]
        losses.append(1 - F.cosine_similarity(rendered - rendered.mean(), known - known.mean(), dim=0))
    return torch.stack(losses).mean()


def normal_loss(
    normal: Tensor,  # [B, H, W, 3], composited, (n + 1) / 2 of the render's world normals n
    reference: Tensor,  # [B, H, W, 3], (1 - n) / 2 of the picture's
    mask: Tensor,  # [B, H, W, 1], bool
) -> Tensor:
    """One less the mean cosine between both normals inside the mask."""
    inside = mask[..., 0]
    return 1 - F.cosine_similarity(2 * normal[inside] - 1, 1 - 2 * reference[inside], dim=-1).mean()


def normal_smoothness(normal: Tensor) -> Tensor:  # [B, H, W, 3] -> []
    """Mean squared difference of vertical neighbours, plus that of horizontal ones."""
    vertical, horizontal = normal[:, 1:] - normal[:, :-1], normal[:, :, 1:] - normal[:, :, :-1]
    return (vertical**2).mean() + (horizontal**2).mean()


def perturbed_normal_loss(normal: Tensor, perturbed: Tensor) -> Tensor:  # both [N, 3] -> []
    """Mean absolute difference of the normals at points and a little beside them."""
    return (normal - perturbed).abs().mean()
