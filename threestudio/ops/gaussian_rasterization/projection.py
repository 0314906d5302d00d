"""From Gaussians in space to Gaussians on the image, in plain torch.

EWA splatting (Zwicker et al. 2002, EWA Splatting) as 3D Gaussian splatting uses it (Kerbl et al. 2023, eqs. 5 and 6):
a Gaussian of covariance Sigma = R S S^T R^T, seen by a camera of rotation W, has on the image about the covariance
J W Sigma W^T J^T, with J the Jacobian of the perspective projection at its mean. DILATION square pixels are added to
the diagonal, so that every Gaussian covers about one pixel.

With the rows m1, m2 of M = J W R S the covariance is M M^T, and its determinant |m1 x m2|^2 (Cauchy-Binet), which does
not cancel for long thin Gaussians as a c - b^2 does in float32.

What a Gaussian covers is decided by alpha alone: a pixel belongs to it where opacity exp(-q / 2) >= ALPHA_MIN, that is
where q <= 2 ln(opacity / ALPHA_MIN), at most 3.33 standard deviations. ``half_sizes`` is the box around that ellipse,
so culling by it never changes the image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from threestudio.utils.devices import constant

# square pixels, added to the variances on the image (Kerbl et al. 2023, their code's and gsplat's eps2d)
DILATION = 0.3
ALPHA_MIN = 1.0 / 255.0  # less is left out (Kerbl et al. 2023, appendix C)
ALPHA_MAX = 0.99  # more is cut, so that backward can divide by 1 - alpha (the same)
# J is taken at most this share of the image's size outside of it, where perspective is far from linear: x / z within
# 1.3 tan(fov / 2) (Kerbl et al. 2023, their code's limit), 0.3 of the half image. gsplat measures it from the edges too
# where the axis is off the middle.
GUARD_BAND = 0.15


class ProjectedGaussians(NamedTuple):
    """N Gaussians on the images of B cameras; pixels, x to the right, y down, centres at half-integers."""

    means2d: Tensor  # [B, N, 2] pixels
    conics: Tensor  # [B, N, 3] a, b, c of q = a dx^2 + 2 b dx dy + c dy^2, the inverse covariance, in 1 / pixels^2
    depths: Tensor  # [B, N] along the view axis, in units of the world
    half_sizes: Tensor  # [B, N, 2] pixels, of the box around what is at least ALPHA_MIN; no gradient
    radii: Tensor  # [B, N] pixels, three standard deviations along the longer axis, 0 where not visible; no gradient
    visible: Tensor  # [B, N] bool: in front of `near`, opaque enough, the box touches the image


def intrinsics_from_fov(
    fovy: float | Tensor,  # radians, a number or [B]
    height: int,
    width: int,
    fovx: float | Tensor | None = None,  # radians; None: square pixels
) -> Tensor:
    """[4] or [B, 4]: focal_x, focal_y, center_x, center_y in pixels of a pinhole camera whose axis meets the middle."""
    fovy = torch.as_tensor(fovy)
    focal_y = 0.5 * height / torch.tan(0.5 * fovy)
    focal_x = focal_y if fovx is None else 0.5 * width / torch.tan(0.5 * torch.as_tensor(fovx, device=fovy.device))
    return torch.stack(
        [focal_x, focal_y, torch.full_like(focal_y, 0.5 * width), torch.full_like(focal_y, 0.5 * height)], -1
    )


def rotation_matrices(quaternions: Tensor) -> Tensor:
    """wxyz [N, 4] of any length but zero -> [N, 3, 3]."""
    w, x, y, z = (quaternions / quaternions.norm(dim=-1, keepdim=True)).unbind(-1)
    return torch.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ],
        -1,
    ).view(-1, 3, 3)  # fmt: skip


def world_to_camera(c2w: Tensor) -> tuple[Tensor, Tensor]:
    """OpenGL c2w [B, 4, 4] -> rotation W [B, 3, 3] and position [B, 3] of a camera that looks along +z with y down."""
    flip = constant((1.0, -1.0, -1.0), c2w)
    return (c2w[:, :3, :3] * flip).transpose(1, 2), c2w[:, :3, 3]


def guard_band(intrinsics: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Least and largest x / z and y / z [B, 2] at which J is taken."""
    size = constant((width, height), intrinsics)
    focal, center = intrinsics[:, :2], intrinsics[:, 2:]
    return ((-GUARD_BAND * size - center) / focal).detach(), (((1 + GUARD_BAND) * size - center) / focal).detach()


def _project(
    means: Tensor, quaternions: Tensor, scales: Tensor, c2w: Tensor, intrinsics: Tensor, height: int, width: int
) -> tuple[Tensor, ...]:
    """means2d [B, N, 2], depths [B, N], covariance a, b, c and determinant [B, N]; means and scales may have a [B]."""
    rotation, position = world_to_camera(c2w)
    local = torch.einsum("bij,bnj->bni", rotation, means - position[:, None])
    z = local[..., 2]
    slope = local[..., :2] / z[..., None]
    focal, center = intrinsics[:, None, :2], intrinsics[:, None, 2:]
    low, high = guard_band(intrinsics, height, width)
    bounded = torch.minimum(torch.maximum(slope, low[:, None]), high[:, None])
    # Rows of J W: (focal_x / z) (W_0 - (x / z) W_2) and the same for y.
    jw = (focal / z[..., None])[..., None] * (rotation[:, None, :2] - bounded[..., None] * rotation[:, None, 2:])
    m = jw @ rotation_matrices(quaternions) * scales[..., None, :]
    a, b, c = (m[..., 0, :] ** 2).sum(-1), (m[..., 0, :] * m[..., 1, :]).sum(-1), (m[..., 1, :] ** 2).sum(-1)
    cross = torch.linalg.cross(m[..., 0, :], m[..., 1, :])
    determinant = (cross**2).sum(-1) + DILATION * (a + c) + DILATION**2
    return slope * focal + center, z, a + DILATION, b, c + DILATION, determinant


def box_half_sizes(opacities: Tensor, a: Tensor, c: Tensor) -> Tensor:
    """[..., 2]: half the width and height of the box around q <= 2 ln(opacity / ALPHA_MIN)."""
    q = 2 * torch.log((opacities / ALPHA_MIN).clamp(min=1.0))
    return torch.stack([(q * a).sqrt(), (q * c).sqrt()], -1)


def project_gaussians(
    means: Tensor,  # [N, 3]
    quaternions: Tensor,  # [N, 4] wxyz
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    c2w: Tensor,  # [B, 4, 4]
    intrinsics: Tensor,  # [B, 4]
    height: int,
    width: int,
    near: float,
) -> ProjectedGaussians:
    """Differentiable in all float arguments but the opacities, which only decide what is visible."""
    with torch.no_grad():
        means2d, z, a, b, c, determinant = _project(means, quaternions, scales, c2w, intrinsics, height, width)
        half = box_half_sizes(opacities, a, c)
        size = constant((width, height), means2d)
        on_image = ((means2d + half > 0) & (means2d - half < size)).all(-1)
        visible = (z > near) & (opacities >= ALPHA_MIN) & on_image & torch.isfinite(determinant)
        largest = 0.5 * (a + c) + torch.hypot(0.5 * (a - c), b)  # of the covariance's eigenvalues
        radii = torch.where(visible, 3 * largest.sqrt(), 0.0)
        half = torch.where(visible[..., None], half, 0.0)
        safe = (c2w[:, :3, 3] - c2w[:, :3, 2])[:, None]  # a point in front, so that what is not visible gives no NaN
    shown = visible[..., None]
    means2d, z, a, b, c, determinant = _project(
        torch.where(shown, means, safe), quaternions, torch.where(shown, scales, 1.0), c2w, intrinsics, height, width
    )
    conics = torch.stack([c, -b, a], -1) / determinant[..., None]
    return ProjectedGaussians(means2d, conics, z, half, radii, visible)
