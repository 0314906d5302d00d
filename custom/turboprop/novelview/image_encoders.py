"""Frozen image encoders behind one interface: CLIP, DINOv2 with and without registers, DINOv3 (transformers' classes).

All take pictures in [-1, 1] of any size and answer with a pooled vector, the patches' vectors, and the hidden states of
chosen layers as maps.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threestudio.utils.errors import UserError, first_line

CLIP_MEAN_STD = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET_MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class EncoderKind:
    """What sets a family of encoders apart."""

    model_class: str  # of transformers
    mean_std: tuple[tuple[float, ...], tuple[float, ...]]  # of the pictures in [0, 1] that it was trained on
    align_corners: bool  # of the resampling to its size: zero-1-to-3 gives CLIP aligned corners without antialiasing
    image_size: int | None  # default side of the pictures, pixels; None: the model's own


# By `model_type` in the model's config.json. DINO's own preprocessing crops 6 % off each side; a view cannot spare it.
KINDS = {
    "clip_vision_model": EncoderKind("CLIPVisionModelWithProjection", CLIP_MEAN_STD, True, None),
    "clip": EncoderKind("CLIPVisionModelWithProjection", CLIP_MEAN_STD, True, None),
    "dinov2": EncoderKind("Dinov2Model", IMAGENET_MEAN_STD, False, 224),
    "dinov2_with_registers": EncoderKind("Dinov2WithRegistersModel", IMAGENET_MEAN_STD, False, 224),
    "dinov3_vit": EncoderKind("DINOv3ViTModel", IMAGENET_MEAN_STD, False, None),
}


@dataclass(frozen=True)
class EncodedImages:
    """What an encoder says about B pictures."""

    pooled: Tensor  # [B, P]: CLIP's projected embedding, DINO's normalised class token
    patches: Tensor  # [B, N, C]: the last layer's patches, row by row
    levels: tuple[Tensor, ...]  # [B, C, rows, columns]: hidden states of the chosen layers, before the final norm


class ImageEncoder(nn.Module):
    """A frozen encoder.

    Args:
        model: one of transformers' classes in KINDS.
        image_size: side to which pictures are resized, pixels; 0: the kind's default.
    Raises ValueError for a model of another kind, or a side that is no multiple of its patches' side.
    """

    def __init__(self, model: Any, image_size: int = 0) -> None:
        super().__init__()
        kind = KINDS.get(model.config.model_type)
        if kind is None:
            raise UserError(
                f"image_encoder: expected a model of type {', '.join(KINDS)}, got {model.config.model_type!r}"
            )
        self.model = model.eval().requires_grad_(False)
        self.kind = kind
        self.patch_size = int(model.config.patch_size)
        # a small DINO made for small pictures has a smaller size of its own
        default = model.config.image_size if kind.image_size is None else min(kind.image_size, model.config.image_size)
        self.image_size = image_size or int(default) // self.patch_size * self.patch_size
        if self.image_size % self.patch_size or self.image_size < self.patch_size:
            raise UserError(
                f"image_encoder_size: expected a multiple of the patches' side {self.patch_size}, got {self.image_size}"
            )
        if kind.model_class == "CLIPVisionModelWithProjection" and self.image_size != model.config.image_size:
            raise UserError(
                f"image_encoder_size: this CLIP takes pictures of {model.config.image_size}, got {self.image_size}"
            )

    @property
    def width(self) -> int:
        """Length of a patch's vector."""
        return int(self.model.config.hidden_size)

    @property
    def pooled_width(self) -> int:
        """Length of the pooled vector."""
        is_clip = self.kind.model_class == "CLIPVisionModelWithProjection"
        return int(self.model.config.projection_dim if is_clip else self.model.config.hidden_size)

    @property
    def num_layers(self) -> int:
        return int(self.model.config.num_hidden_layers)

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    def train(self, mode: bool = True) -> "ImageEncoder":
        """Stays in evaluation mode: the encoder is frozen."""
        return super().train(False)

    def prepared(self, images: Tensor) -> Tensor:  # [B, 3, H, W] in [-1, 1]
        """The pictures resized to the encoder's side and normalised. Returns [B, 3, S, S], float32."""
        size = (self.image_size, self.image_size)
        corners = self.kind.align_corners
        resized = F.interpolate(images.float(), size, mode="bicubic", align_corners=corners, antialias=not corners)
        mean, std = (resized.new_tensor(values).view(1, 3, 1, 1) for values in self.kind.mean_std)
        return ((resized + 1.0) / 2.0 - mean) / std

    @torch.no_grad()
    def forward(
        self,
        images: Tensor,  # [B, 3, H, W] in [-1, 1]
        layers: Sequence[int] = (),  # numbers of the blocks whose hidden states are wanted, from 0
    ) -> EncodedImages:
        with torch.autocast(images.device.type, enabled=False):
            output = self.model(self.prepared(images).to(self.model.dtype), output_hidden_states=len(layers) > 0)
        is_clip = self.kind.model_class == "CLIPVisionModelWithProjection"
        pooled = output.image_embeds if is_clip else output.pooler_output
        count = self.grid**2
        states = [output.hidden_states[layer + 1] for layer in layers]  # the first entry is the embeddings
        # class token and registers come first
        maps = [state[:, -count:].transpose(1, 2).unflatten(2, (self.grid, self.grid)) for state in states]
        return EncodedImages(pooled, output.last_hidden_state[:, -count:], tuple(maps))


def read_encoder(folder: Path, image_size: int = 0, key: str = "image_encoder") -> ImageEncoder:
    """The encoder in a folder with config.json and weights.

    A whole CLIP model gives its vision tower. Raises ValueError for a model of another kind, or one that does not load.
    """
    import transformers
    from safetensors import SafetensorError

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: cannot read {folder / 'config.json'}: {error}") from error
    kind = KINDS.get(config.get("model_type", ""))
    if kind is None:
        raise UserError(
            f"{key}: expected a model of type {', '.join(KINDS)} in {folder}, got {config.get('model_type')!r}"
        )
    options: dict[str, Any] = {"dtype": torch.float32}
    if config["model_type"] == "clip":
        whole = transformers.CLIPConfig.from_pretrained(str(folder))
        whole.vision_config.projection_dim = whole.projection_dim
        options["config"] = whole.vision_config
    try:
        model_class = getattr(transformers, kind.model_class)
        with quiet_transformers():
            model, loaded = model_class.from_pretrained(str(folder), output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        reason = first_line(error)
        raise UserError(f"{key}: cannot load the encoder in {folder}: {reason}") from error
    if loaded["missing_keys"]:
        missing = sorted(loaded["missing_keys"])
        raise UserError(f"{key}: {folder} lacks {len(missing)} weights of {kind.model_class}, first {missing[0]}")
    return ImageEncoder(model, image_size)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' list of the weights that a CLIP's vision tower leaves aside, and its progress bar."""
    from transformers.utils import logging as transformers_logging

    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
