"""The trained layers between image encoders and the UNet: cross-attention tokens, and features for the down path.

Tokens are zero-1-to-3's (arXiv 2303.11328): the image's embedding and the relative camera through one linear layer.
Features follow the idea of Efficient-3DiM (arXiv 2310.03015), section 3.3, whose details are not public: several layers
of a self-supervised encoder, normalised, resized to the UNet's resolutions and given to its encoder half alone. Our
choices are that all chosen layers go to each resolution, and that a 1x1 convolution which starts at zero adds them.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threestudio.utils.errors import UserError

from .camera_pose import POSE_NUMBERS


class FloatLayerNorm(nn.LayerNorm):
    """Layer normalisation that computes and answers in float32, under autocast and with half-precision weights too."""

    def forward(self, values: Tensor) -> Tensor:  # [..., C] -> [..., C]
        with torch.autocast(values.device.type, enabled=False):
            return F.layer_norm(values.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


class TokenProjection(nn.Module):
    """Image vectors and a relative camera to cross-attention tokens: zero-1-to-3's `cc_projection`.

    Starts as the identity on the image's part where the widths are equal, as zero-1-to-3 does.

    Args:
        image_width: length of an image vector.
        token_width: width of the UNet's cross-attention.
        normalize: layer-normalise the image vectors first, in float32; zero-1-to-3's CLIP embedding is not.
    """

    def __init__(self, image_width: int, token_width: int, normalize: bool) -> None:
        super().__init__()
        self.norm = FloatLayerNorm(image_width) if normalize else None
        self.projection = nn.Linear(image_width + POSE_NUMBERS, token_width)
        if image_width == token_width:
            with torch.no_grad():
                self.projection.weight[:, :image_width] = torch.eye(token_width)
                self.projection.bias.zero_()

    def forward(
        self,
        vectors: Tensor,  # [B, N, image_width]
        pose: Tensor,  # [B, 4]
    ) -> Tensor:
        """Returns [B, N, token_width]."""
        if self.norm is not None:
            vectors = self.norm(vectors)
        pose = pose[:, None].expand(-1, vectors.shape[1], -1)
        joined = torch.cat([vectors, pose.to(vectors.dtype)], dim=-1)
        return self.projection(joined.to(self.projection.weight.dtype))


def injection_shapes(unet: Any) -> list[tuple[int, int]]:
    """Channels and side of what can be added to each block of a UNet's down path, in the blocks' order.

    A block with cross-attention takes it before it halves the resolution, one without after (diffusers 0.42,
    `down_intrablock_additional_residuals`). Raises ValueError for a block of another type.
    """
    shapes = []
    side = int(unet.config.sample_size)
    for kind, block in zip(unet.config.down_block_types, unet.down_blocks):
        if kind not in ("CrossAttnDownBlock2D", "DownBlock2D"):
            raise UserError(f"feature_layers: nothing can be added to this unet's {kind}")
        smaller = side if block.downsamplers is None else -(-side // 2)
        shapes.append((int(block.resnets[-1].out_channels), smaller if kind == "DownBlock2D" else side))
        side = smaller
    return shapes


class FeatureInjection(nn.Module):
    """Maps of several encoder layers to what is added to each block of the UNet's down path. Zero at the start.

    Args:
        feature_width: channels of each map.
        num_levels: number of maps.
        shapes: (channels, side) for each block of the down path; see `injection_shapes`.
    """

    def __init__(self, feature_width: int, num_levels: int, shapes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.sides = [side for _, side in shapes]
        self.norms = nn.ModuleList(FloatLayerNorm(feature_width) for _ in range(num_levels))
        self.projections = nn.ModuleList(nn.Conv2d(feature_width * num_levels, channels, 1) for channels, _ in shapes)
        for projection in self.projections:
            nn.init.zeros_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:  # each [B, feature_width, rows, columns]
        """Returns one [B, channels, side, side] for each block."""
        normalised = [norm(level.movedim(1, -1)).movedim(-1, 1) for norm, level in zip(self.norms, levels, strict=True)]
        joined = torch.cat(normalised, dim=1)  # [B, levels * feature_width, rows, columns], float32
        return tuple(
            projection(self._resized(joined, side).to(projection.weight.dtype))
            for projection, side in zip(self.projections, self.sides)
        )

    @staticmethod
    def _resized(maps: Tensor, side: int) -> Tensor:
        if maps.shape[-1] == side:
            return maps
        smaller = maps.shape[-1] > side
        return F.interpolate(maps, (side, side), mode="bilinear", align_corners=False, antialias=smaller)
