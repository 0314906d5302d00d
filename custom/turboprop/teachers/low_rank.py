"""A teacher of the renders' own distribution: a pretrained denoiser with trained low-rank adapters and a camera.

ProlificDreamer (Wang et al. 2023, arXiv 2305.16213), section 3.2: the score of noisy renders is estimated by a LoRA
(Hu et al. 2021, arXiv 2106.09685) of the pretrained network, conditioned on the camera, and trained beside the scene.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import check_at_least

from .contract import Teacher
from .loading import Denoiser
from .multi_view.cameras import CAMERA_NUMBERS
from .noise_schedule import check_prediction_type, prediction_target, to_epsilon

ATTENTION_LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]  # of each attention block


@dataclass(frozen=True)
class CameraCondition:
    """What the teacher is asked, and a camera, for each sample.

    Samples come in sets of `num_views` that a multi-view network compares.
    """

    asked: Any  # a Condition of the network's kind
    cameras: Tensor  # [B, 16], of a 4x4 matrix or as a multi-view network is told cameras; zeros mean any camera
    num_views: int = 1

    def cat(self, others: Sequence["CameraCondition"]) -> "CameraCondition":
        cameras = torch.cat([self.cameras, *(other.cameras for other in others)])
        return CameraCondition(self.asked.cat([other.asked for other in others]), cameras, self.num_views)

    def take(self, count: int) -> "CameraCondition":
        return CameraCondition(self.asked.take(count), self.cameras[:count], self.num_views)

    def without_cameras(self) -> "CameraCondition":
        return self.with_cameras(torch.zeros_like(self.cameras))

    def with_cameras(self, cameras: Tensor) -> "CameraCondition":  # [B, 16]
        return CameraCondition(self.asked, cameras, self.num_views)

    def __len__(self) -> int:
        return len(self.asked)


class LowRankTeacher(nn.Module, Teacher[CameraCondition]):
    """A denoiser with adapters. Its parameters, and its state dict, are the adapters and the camera's embedding alone.

    A multi-view denoiser keeps the frozen embedding of cameras that it was trained with: its parameters are the
    adapters.
    Between its calls the denoiser is as it was before, so that the same network can be another teacher's.

    Args:
        denoiser: the pretrained network; stays frozen.
        base: the teacher whose latents this one is about: it encodes and decodes.
        rank: of each adapter.
    Raises ValueError for a denoiser that takes conditions besides the prompt, or that does not fit the base teacher.
    """

    def __init__(self, denoiser: Denoiser, base: Teacher, rank: int = 4) -> None:
        super().__init__()
        _check_fit(denoiser, base, rank)
        unet = denoiser.unet
        self._denoiser = denoiser  # a plain dataclass: hides the network from parameters() and the state dict
        self._base = (base,)
        self._dtype = next(unet.parameters()).dtype
        self.alphas_cumprod = base.alphas_cumprod
        self.image_size, self.latent_size = base.image_size, base.latent_size
        self.latent_channels = base.latent_channels
        self.multi_view = denoiser.multi_view
        self._layers, adapters = _inject(unet, rank)
        self.adapters = nn.ParameterDict(adapters)
        self.camera_embedding: nn.Module | None = None
        if not denoiser.multi_view:
            from diffusers.models.embeddings import TimestepEmbedding

            width = unet.time_embedding.linear_2.out_features
            self.camera_embedding = TimestepEmbedding(CAMERA_NUMBERS, width).to(self.device)
        self._set_adapted(False)

    def sharing_modules(self) -> Iterator[nn.Module]:
        """The layers of the denoiser that hold the adapters' weights."""
        own = {id(parameter) for parameter in self.adapters.values()}
        for layer in self._layers:
            yield from (m for m in layer.modules() if any(id(p) in own for p in m.parameters(recurse=False)))

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        return self._base[0].encode(images, noise)

    def encoding_noise(self, images: Tensor) -> Tensor | None:
        return self._base[0].encoding_noise(images)

    def decode(self, latents: Tensor) -> Tensor:
        return self._base[0].decode(latents)

    @torch.no_grad()
    def predict_noise(self, noisy: Tensor, timesteps: Tensor, condition: CameraCondition) -> Tensor:
        prediction = self._predict(noisy, timesteps, condition).to(noisy.dtype)
        return to_epsilon(prediction, noisy, timesteps, self.alphas_cumprod, self._denoiser.prediction_type)

    def denoising_loss(
        self,
        latents: Tensor,  # [B, C, h, w]
        noise: Tensor,  # [B, C, h, w]
        timesteps: Tensor,  # [B]
        condition: CameraCondition,  # of B samples
    ) -> Tensor:
        """The mean squared error of what the network predicts, in its own prediction type; with a graph.

        ProlificDreamer, equation 10. Returns a scalar.
        """
        noisy = self.add_noise(latents, noise, timesteps)
        prediction = self._predict(noisy, timesteps, condition)
        kind = self._denoiser.prediction_type
        target = prediction_target(latents, noise, timesteps, self.alphas_cumprod, kind)
        return F.mse_loss(prediction.float(), target.float())

    def _predict(self, noisy: Tensor, timesteps: Tensor, condition: CameraCondition) -> Tensor:
        noisy = noisy.to(self._dtype)
        cameras = condition.cameras.to(device=noisy.device, dtype=torch.float32)
        with torch.autocast(self.device.type, enabled=False), self._adapted() as network:
            if self.multi_view:
                return network(noisy, timesteps, condition.asked.embeddings.to(noisy), cameras, condition.num_views)
            sample, keywords = self._denoiser.inputs(noisy, condition.asked)
            prediction = network(sample, timesteps, **keywords, class_labels=cameras).sample
        return prediction[:, : self.latent_channels]  # a learned variance follows, where there is one

    @contextmanager
    def _adapted(self) -> Iterator[Any]:
        """The network with adapters and camera inside the block, without them after it."""
        self._set_adapted(True)
        try:
            yield self._denoiser.unet
        finally:
            self._set_adapted(False)

    def _set_adapted(self, adapted: bool) -> None:
        for layer in self._layers:
            layer.enable_adapters(adapted)
        if self.camera_embedding is not None:
            self._denoiser.unet.class_embedding = self.camera_embedding if adapted else None
        # peft freezes adapters that it disables; but gradients reach them after the block
        for parameter in self.adapters.values():
            parameter.requires_grad_(True)


def _inject(unet: Any, rank: int) -> tuple[list[Any], dict[str, nn.Parameter]]:
    """Puts adapters into the attention layers of a frozen network. Returns these layers, and the adapters' weights."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    # "gaussian": down-projections from N(0, 1 / rank^2), as in threestudio's VSD (diffusers' LoRA layers of its time);
    # up-projections are zero. peft's own default is smaller by the layer's width, and adapters learn slower from it.
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=ATTENTION_LAYERS, init_lora_weights="gaussian")
    inject_adapter_in_model(config, unet)
    layers = [module for module in unet.modules() if isinstance(module, BaseTunerLayer)]
    adapters = {}
    for name, parameter in unet.named_parameters():
        if ".lora_" not in name:
            parameter.requires_grad_(False)
            continue
        parameter.data = parameter.data.float()  # small steps would be lost in float16
        adapters[name.replace(".default.weight", "").replace(".", "/")] = parameter
    return layers, adapters


def _check_fit(denoiser: Denoiser, base: Teacher, rank: int) -> None:
    config = denoiser.unet.unet.config if denoiser.multi_view else denoiser.unet.config
    check_at_least("lora_rank", rank, 1)
    check_prediction_type(denoiser.prediction_type)
    conditioned = config.class_embed_type is not None and not denoiser.multi_view
    if conditioned or config.addition_embed_type not in (None, "text"):
        raise UserError("pretrained_model_name_or_path_lora: its unet needs conditions besides the prompt")
    if config.in_channels != denoiser.latents_taken * base.latent_channels:
        raise UserError(
            f"pretrained_model_name_or_path_lora: its unet takes {config.in_channels} channels, "
            f"the teacher's latents have {base.latent_channels}"
        )
    ours, theirs = denoiser.alphas_cumprod.cpu().float(), base.alphas_cumprod.cpu().float()
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, atol=1e-5):
        raise UserError("pretrained_model_name_or_path_lora: its noise schedule is not the teacher's")
