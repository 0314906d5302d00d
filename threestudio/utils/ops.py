"""Pure tensor functions: cameras and rays, activations, small losses.

World: right-handed, z up. Cameras: c2w, OpenGL axes (x right, y up, looking along -z).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio


def dot(x: Tensor, y: Tensor) -> Tensor:
    """[..., D], [..., D] -> [..., 1]"""
    return torch.sum(x * y, dim=-1, keepdim=True)


def reflect(x: Tensor, n: Tensor) -> Tensor:
    """`x` mirrored about the unit vector `n`; all [..., 3]."""
    return 2 * dot(x, n) * n - x


def scale_tensor(
    dat: Tensor,  # [..., D]
    inp_scale: Any = None,  # (low, high): numbers, or a tensor [2, D]; default (0, 1)
    tgt_scale: Any = None,  # the same
) -> Tensor:
    """Maps the range `inp_scale` to the range `tgt_scale`, linearly."""
    low, high = (0, 1) if inp_scale is None else inp_scale
    new_low, new_high = (0, 1) if tgt_scale is None else tgt_scale
    return (dat - low) / (high - low) * (new_high - new_low) + new_low


class _TruncatedExp(torch.autograd.Function):
    """exp whose gradient stays finite: it is that of exp at the input clamped to 15."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.exp(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * torch.exp(torch.clamp(x, max=15))


def trunc_exp(x: Tensor) -> Tensor:
    return _TruncatedExp.apply(x)


def linear_to_srgb(x: Tensor) -> Tensor:
    """The sRGB transfer function (IEC 61966-2-1); values in [0, 1]."""
    curve = 1.055 * torch.clamp(x, min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(x > 0.0031308, curve, 12.92 * x).clamp(0.0, 1.0)


def srgb_to_linear(x: Tensor) -> Tensor:
    """The inverse of `linear_to_srgb`; values in [0, 1]."""
    curve = ((torch.clamp(x, min=0.04045) + 0.055) / 1.055) ** 2.4
    return torch.where(x > 0.04045, curve, x / 12.92)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "lin2srgb": linear_to_srgb,
    "exp": torch.exp,
    "shifted_exp": lambda x: torch.exp(x - 1.0),
    "trunc_exp": trunc_exp,
    "shifted_trunc_exp": lambda x: trunc_exp(x - 1.0),
    "sigmoid": torch.sigmoid,
    # 0 and 1 are reached by finite logits (mip-NeRF, Barron et al. 2021, the colours' padding of 0.001)
    "sigmoid-mipnerf": lambda x: torch.sigmoid(x) * 1.002 - 0.001,
    "tanh": torch.tanh,
    "shifted_softplus": lambda x: F.softplus(x - 1.0),
    "scale_-11_01": lambda x: x * 0.5 + 0.5,
}


def get_activation(name: str | None, key: str = "activation") -> Callable[[Tensor], Tensor]:
    """The activation of that name: one of the above, or any function of torch.nn.functional that maps a tensor alone
    to one of its shape. Raises UserError, which begins with `key`."""
    word = "none" if name is None else str(name).lower()
    activation = _ACTIVATIONS.get(word, getattr(F, word, None))
    if word not in _ACTIVATIONS and not _keeps_shape(activation):
        from threestudio.utils.errors import UserError, with_suggestion

        known = [*_ACTIVATIONS, "softplus", "relu", "gelu", "silu", "leaky_relu", "elu"]
        raise UserError(with_suggestion(f"{key}: unknown activation '{name}'", word, known))
    return activation


def _keeps_shape(function: Any) -> bool:
    """Whether it is a function of one tensor that gives one of the same shape."""
    sample = torch.zeros(2, 3)
    try:
        return isinstance(function, Callable) and function(sample).shape == sample.shape
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False


def _concatenate(chunks: list) -> Any:
    first = chunks[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return torch.cat(chunks, dim=0)
    if isinstance(first, dict):
        return {key: _concatenate([chunk[key] for chunk in chunks]) for key in first}
    if isinstance(first, (tuple, list)):
        joined = [_concatenate(list(parts)) for parts in zip(*chunks)]
        return joined if isinstance(first, list) else tuple(joined)
    raise TypeError(f"chunk_batch joins tensors, and dicts, tuples and lists of them; got {type(first)}")


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: _detached(v) for key, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_detached(v) for v in value] if isinstance(value, list) else tuple(map(_detached, value))
    return value


def chunk_batch(func: Callable, chunk_size: int, *args: Any, **kwargs: Any) -> Any:
    """`func(*args, **kwargs)`, with its tensor arguments cut along dim 0 and the results joined.

    `chunk_size` <= 0 calls it once. Without grad mode the results are detached, which frees each
    chunk's graph where `func` enables gradients for itself.
    """
    if chunk_size <= 0:
        return func(*args, **kwargs)
    sizes = [a.shape[0] for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
    if not sizes:
        raise ValueError("chunk_batch needs at least one tensor argument")

    def cut(value: Any, start: int) -> Any:
        return value[start : start + chunk_size] if isinstance(value, Tensor) else value

    chunks = []
    for start in range(0, max(sizes[0], 1), chunk_size):
        out = func(*[cut(a, start) for a in args], **{key: cut(v, start) for key, v in kwargs.items()})
        chunks.append(out if torch.is_grad_enabled() else _detached(out))
    return _concatenate(chunks)


def get_ray_directions(
    H: int,
    W: int,
    focal: float | tuple[float, float],  # in pixels; (fx, fy) or one for both
    principal: tuple[float, float] | None = None,  # (cx, cy) in pixels; default the centre
    use_pixel_centers: bool = True,
) -> Tensor:  # [H, W, 3]
    """Ray directions in camera space, not normalized (z = -1)."""
    fx, fy = (focal, focal) if isinstance(focal, (int, float)) else focal
    cx, cy = (W / 2, H / 2) if principal is None else principal
    centre = 0.5 if use_pixel_centers else 0.0
    x, y = torch.meshgrid(
        torch.arange(W, dtype=torch.float32) + centre,
        torch.arange(H, dtype=torch.float32) + centre,
        indexing="xy",
    )
    return torch.stack([(x - cx) / fx, -(y - cy) / fy, -torch.ones_like(x)], dim=-1)


def get_rays(
    directions: Tensor,  # [N, 3] | [H, W, 3] | [B, H, W, 3]
    c2w: Tensor,  # [4, 4] | [N, 4, 4] | [B, 4, 4]
    keepdim: bool = False,
    noise_scale: float = 0.0,
    normalize: bool = True,
) -> tuple[Tensor, Tensor]:
    """(origins, directions) in world space; [..., 3] with `keepdim`, else [N, 3]."""
    if directions.shape[-1] != 3:
        raise ValueError(f"directions are [..., 3]; got {tuple(directions.shape)}")
    if c2w.ndim == 2:
        rotation, origin = c2w[:3, :3], c2w[:3, 3]
    elif c2w.ndim == 3 and directions.ndim == 2:  # one camera a ray
        rotation, origin = c2w[:, :3, :3], c2w[:, :3, 3]
    elif c2w.ndim == 3 and directions.ndim in (3, 4):  # one camera an image
        rotation, origin = c2w[:, None, None, :3, :3], c2w[:, None, None, :3, 3]
    else:
        raise ValueError(f"no rays from directions {tuple(directions.shape)} and c2w {tuple(c2w.shape)}")
    rays_d = (directions[..., None, :] * rotation).sum(dim=-1)
    rays_o = origin.expand(rays_d.shape)
    if noise_scale > 0:  # one offset for all rays, as a slightly wrong camera gives
        rays_o = rays_o + torch.randn(3, device=rays_o.device) * noise_scale
        rays_d = rays_d + torch.randn(3, device=rays_d.device) * noise_scale
    if normalize:
        rays_d = F.normalize(rays_d, dim=-1)
    if not keepdim:
        rays_o, rays_d = rays_o.reshape(-1, 3), rays_d.reshape(-1, 3)
    return rays_o, rays_d


def get_projection_matrix(
    fovy: Tensor,  # [B], radians
    aspect_wh: float,
    near: float,
    far: float,
) -> Tensor:  # [B, 4, 4]
    """Perspective projection to clip space with y down: row 0 of an image is its top."""
    matrix = fovy.new_zeros(fovy.shape[0], 4, 4)
    cotangent = 1.0 / torch.tan(fovy / 2.0)
    matrix[:, 0, 0] = cotangent / aspect_wh
    matrix[:, 1, 1] = -cotangent
    matrix[:, 2, 2] = -(far + near) / (far - near)
    matrix[:, 2, 3] = -2.0 * far * near / (far - near)
    matrix[:, 3, 2] = -1.0
    return matrix


def invert_pose(c2w: Tensor) -> Tensor:
    """The inverse of rigid transforms [..., 4, 4], without a general matrix inverse."""
    rotation = c2w[..., :3, :3].transpose(-1, -2)
    w2c = torch.zeros_like(c2w)
    w2c[..., :3, :3] = rotation
    w2c[..., :3, 3:] = -rotation @ c2w[..., :3, 3:]
    w2c[..., 3, 3] = 1.0
    return w2c


def get_mvp_matrix(c2w: Tensor, proj_mtx: Tensor) -> Tensor:
    """World to clip space; all [B, 4, 4]."""
    return proj_mtx @ invert_pose(c2w)


def get_cam_info_gaussian(
    c2w: Tensor,  # [..., 4, 4]
    fovx: float | Tensor,  # radians
    fovy: float | Tensor,  # radians
    znear: float,
    zfar: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(world_view_transform, full_proj_transform, camera_center) as Gaussian rasterizers ask.

    Both matrices are transposed (they multiply row vectors from the right); the camera has
    OpenCV's axes (y down, z forward) and depth is mapped to [0, 1].
    """
    flip = torch.diag(c2w.new_tensor([1.0, -1.0, -1.0, 1.0]))
    world_view_transform = invert_pose(c2w @ flip).transpose(-1, -2)
    projection = c2w.new_zeros(4, 4)
    projection[0, 0] = 1.0 / math.tan(float(fovx) / 2)
    projection[1, 1] = 1.0 / math.tan(float(fovy) / 2)
    projection[2, 2] = zfar / (zfar - znear)
    projection[2, 3] = -zfar * znear / (zfar - znear)
    projection[3, 2] = 1.0
    full_proj_transform = world_view_transform @ projection.transpose(-1, -2)
    return world_view_transform, full_proj_transform, c2w[..., :3, 3].clone()


def binary_cross_entropy(input: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy of probabilities; unlike torch's own it may run under autocast."""
    return -(target * torch.log(input) + (1 - target) * torch.log(1 - input)).mean()


def validate_empty_rays(
    ray_indices: Tensor,  # [N], integer
    t_start: Tensor,  # [N]
    t_end: Tensor,  # [N]
) -> tuple[Tensor, Tensor, Tensor]:
    """The samples as they are, or one sample of no length where there is none at all."""
    if ray_indices.numel() > 0:
        return ray_indices, t_start, t_end
    threestudio.warn("no samples along any ray: the volume is empty")
    return ray_indices.new_zeros(1), t_start.new_zeros(1), t_end.new_zeros(1)


def perpendicular_component(x: Tensor, y: Tensor) -> Tensor:
    """What of each `x` is perpendicular to its `y`; all [B, C, H, W].

    Perp-Neg (Armandpour et al. 2023), equation 6.
    """
    dims = tuple(range(1, x.ndim))
    along = (x * y).sum(dims, keepdim=True)
    length = (y * y).sum(dims, keepdim=True).clamp(min=1e-6)
    return x - along / length * y
