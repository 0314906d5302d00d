"""What a multi-view network is told about a camera: sixteen numbers."""

import torch
import torch.nn.functional as F
from torch import Tensor

from threestudio.utils.value_checks import check_choice

CAMERA_NUMBERS = 16
ENCODINGS = ("mvdream", "apparent_scale")
# Puts the logarithm of half a picture's height at the origin, in world units, on the scale of the other numbers.
APPARENT_SCALE_GAIN = 10.0


def camera_numbers(
    c2w: Tensor,  # [B, 4, 4], OpenGL axes, world units
    fovy: Tensor,  # [B], radians
    encoding: str,
) -> Tensor:
    """The sixteen numbers of each camera: [B, 16].

    "mvdream": c2w row by row, its translation of unit length (MVDream's code, camera_utils.normalize_camera). How large
    an object looks is then unknown to the network.
    "apparent_scale": as before, and in the last place, which is 1 in any c2w, 10 log(distance tan(fovy / 2)): half
    the height of the picture at the origin. So the network is told distance and field of view.
    Raises ValueError for an unknown encoding.
    """
    check_choice("camera encoding", encoding, ENCODINGS)
    position = c2w[:, :3, 3]
    normalized = c2w.clone()
    normalized[:, :3, 3] = F.normalize(position, dim=-1, eps=1e-8)
    numbers = normalized.flatten(1)
    if encoding == "apparent_scale":
        half_height = (position.norm(dim=-1) * torch.tan(0.5 * fovy)).clamp_min(1e-4)
        numbers[:, -1] = APPARENT_SCALE_GAIN * half_height.log()
    return numbers
