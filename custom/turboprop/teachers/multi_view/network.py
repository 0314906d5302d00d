"""MVDream's denoiser, composed from diffusers' own UNet.

It is Stable Diffusion's UNet with two changes (MVDream, Shi et al. 2023, arXiv 2308.16512, section 3.1 and 3.2):
self-attention looks at all views of a set, and an embedding of the camera is added to that of the timestep.
"""

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from threestudio.utils.errors import UserError

from .attention import CrossViewAttentionProcessor
from .cameras import CAMERA_NUMBERS


class MultiViewUNet(ModelMixin, ConfigMixin):
    """A UNet over sets of views.

    `unet_config` holds the arguments of the UNet2DConditionModel inside. `camera_encoding` says which sixteen numbers
    of a camera it was trained with (`cameras.camera_numbers`), `num_views` how many views its sets had.
    """

    @register_to_config
    def __init__(
        self,
        unet_config: dict[str, Any] | None = None,
        camera_encoding: str = "mvdream",
        num_views: int = 4,
    ) -> None:
        super().__init__()
        arguments = {key: value for key, value in (unet_config or {}).items() if not key.startswith("_")}
        # "identity": what is added to the timestep's embedding is given as it is, here the camera's embedding
        self.unet = UNet2DConditionModel(**{**arguments, "class_embed_type": "identity"})
        self.unet.set_attn_processor(CrossViewAttentionProcessor())
        width = self.unet.time_embedding.linear_2.out_features
        self.camera_embedding = nn.Sequential(nn.Linear(CAMERA_NUMBERS, width), nn.SiLU(), nn.Linear(width, width))
        self._width = width

    def forward(
        self,
        noisy: Tensor,  # [S * V, C, h, w], set by set
        timesteps: Tensor,  # [S * V], equal within a set
        encoder_hidden_states: Tensor,  # [S * V, N, D]
        cameras: Tensor | None = None,  # [S * V, 16]; None, or zeros for one: plain pictures of no known camera
        num_views: int = 1,  # V
    ) -> Tensor:  # [S * V, C, h, w]
        """What the network predicts. Raises ValueError where the batch does not hold whole sets."""
        if noisy.shape[0] % num_views:
            raise UserError(f"expected whole sets of {num_views} views, got {noisy.shape[0]} pictures")
        if cameras is None:
            embedded = noisy.new_zeros(noisy.shape[0], self._width)
        else:
            known = (cameras != 0).any(dim=-1, keepdim=True)
            embedded = known * self.camera_embedding(cameras.to(next(self.camera_embedding.parameters()).dtype))
        return self.unet(
            noisy,
            timesteps,
            encoder_hidden_states,
            class_labels=embedded,
            cross_attention_kwargs={"num_views": num_views},
        ).sample


@torch.no_grad()
def from_text_to_image(unet: UNet2DConditionModel, camera_encoding: str, num_views: int) -> MultiViewUNet:
    """A multi-view network that begins as a text-to-image one: the camera's embedding adds nothing at first."""
    # keys with an underscore are diffusers' notes, as the path that the UNet came from
    arguments = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    network = MultiViewUNet(arguments, camera_encoding, num_views)
    network.unet.load_state_dict(unet.state_dict())
    network.camera_embedding[-1].weight.zero_()
    network.camera_embedding[-1].bias.zero_()
    return network
