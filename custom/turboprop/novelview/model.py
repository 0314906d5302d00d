"""The novel-view diffusion model: a diffusers UNet that sees the noisy latent beside the input view's latent.

It is composed, not derived: UNet2DConditionModel, AutoencoderKL, frozen image encoders, and the small trained layers of
`conditioning`. zero-1-to-3 (arXiv 2303.11328) is one of its settings, with a CLIP encoder and one token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import check_choice

from ..teachers.loading import UNetInputs
from ..teachers.noise_schedule import check_prediction_type, to_epsilon
from .camera_pose import check_fourth_number
from .condition import ConditionDropout, NovelViewCondition, keep_where
from .conditioning import FeatureInjection, TokenProjection, injection_shapes
from .image_encoders import ImageEncoder

TOKEN_FORMS = ("pooled", "patches")
NULL_CONDITIONS = ("projected_zeros", "zero123")


@dataclass
class NovelViewSettings:
    """What a model is, besides its parts; saved with the weights."""

    # What the UNet's cross-attention looks at: one token of the encoder's pooled vector (zero-1-to-3), or all patches.
    tokens: str = "pooled"
    # Numbers of the feature encoder's blocks, from 0, whose hidden states go into the UNet's down path; may be empty.
    feature_layers: list[int] = field(default_factory=list)
    # Layer-normalise image vectors before their projection, in float32; zero-1-to-3 does not.
    normalize_tokens: bool = False
    # Side of the pictures that the encoders see, pixels; 0: the encoder's default.
    image_encoder_size: int = 0
    feature_encoder_size: int = 0
    # The fourth number of the relative camera; see camera_pose.
    fourth_number: str = "distance_difference"
    # What training puts in place of a dropped image. "projected_zeros": zeros for tokens and features, as in sampling.
    # "zero123", upstream's: zeros before the projection, with the camera kept; sampling has zeros after it even so.
    null_condition: str = "projected_zeros"
    # Whether the input view's latent is scaled as the noisy one is; zero-1-to-3's is not.
    scale_input_latents: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.feature_layers, Sequence) and not isinstance(self.feature_layers, str):
            self.feature_layers = list(self.feature_layers)

    def check(self) -> None:
        """Raises ValueError that names the setting, what was expected and what came."""
        for key, known in (("tokens", TOKEN_FORMS), ("null_condition", NULL_CONDITIONS)):
            check_choice(key, getattr(self, key), known)
        check_fourth_number(self.fourth_number)
        layers = self.feature_layers
        if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
            raise UserError(f"feature_layers: expected a list of whole numbers, got {layers!r}")


@dataclass(frozen=True)
class EncodedView:
    """What the frozen parts say about B input views; the same from whichever camera a new view is asked for."""

    latents: Tensor  # [B, 4, h, w], in the unit that the model takes
    vectors: Tensor  # [B, N, C], of the token encoder
    levels: tuple[Tensor, ...] = field(default=())  # [B, C, rows, columns], of the feature encoder

    def expanded(self, count: int) -> "EncodedView":
        """One view for `count` samples; of several, as many as there are samples. Raises ValueError for another number
        of views."""
        if self.latents.shape[0] not in (1, count):
            raise UserError(f"expected 1 or {count} input views, got {self.latents.shape[0]}")
        return EncodedView(
            self.latents.expand(count, -1, -1, -1),
            self.vectors.expand(count, -1, -1),
            tuple(level.expand(count, -1, -1, -1) for level in self.levels),
        )

    def chosen(self, which: Tensor) -> "EncodedView":  # [N], integer
        """The views of these numbers, N of them."""
        return EncodedView(self.latents[which], self.vectors[which], tuple(level[which] for level in self.levels))


class NovelViewModel(nn.Module):
    """A UNet with all that turns an input view and a relative camera into its condition.

    Args:
        unet: takes twice the autoencoder's channels: noisy latent, then input latent.
        vae: the autoencoder, frozen.
        image_encoder: gives the tokens, frozen.
        settings: what the model is.
        alphas_cumprod: [T], the noise schedule.
        prediction_type: what the UNet predicts: epsilon, v_prediction or sample.
        feature_encoder: gives the injected features, frozen; None: the image encoder gives them too.
    Raises ValueError for parts that do not fit together; the message names them.
    """

    alphas_cumprod: Tensor

    def __init__(
        self,
        unet: Any,
        vae: Any,
        image_encoder: ImageEncoder,
        settings: NovelViewSettings,
        alphas_cumprod: Tensor,
        prediction_type: str = "epsilon",
        feature_encoder: ImageEncoder | None = None,
    ) -> None:
        super().__init__()
        settings.check()
        _check_parts(unet, vae, prediction_type)
        self.settings = settings
        self.prediction_type = prediction_type
        self.unet = unet
        self.vae = vae.eval().requires_grad_(False)
        self.image_encoder = image_encoder
        self.feature_encoder = feature_encoder
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)
        width = image_encoder.pooled_width if settings.tokens == "pooled" else image_encoder.width
        self.tokens = TokenProjection(width, int(unet.config.cross_attention_dim), settings.normalize_tokens)
        self.injection: FeatureInjection | None = None
        if settings.feature_layers:
            source = self._feature_source
            wrong = [layer for layer in settings.feature_layers if not 0 <= layer < source.num_layers]
            if wrong:
                raise UserError(f"feature_layers: the encoder has layers 0 to {source.num_layers - 1}, got {wrong[0]}")
            self.injection = FeatureInjection(source.width, len(settings.feature_layers), injection_shapes(unet))

    @property
    def _feature_source(self) -> ImageEncoder:
        return self.image_encoder if self.feature_encoder is None else self.feature_encoder

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    @property
    def latent_size(self) -> int:
        return int(self.unet.config.sample_size)

    @property
    def image_size(self) -> int:
        """Side of the pictures that the autoencoder takes, pixels."""
        return self.latent_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    def trained_parts(self) -> dict[str, nn.Module]:
        """The parts that training changes, by name."""
        parts: dict[str, nn.Module] = {"unet": self.unet, "tokens": self.tokens}
        if self.injection is not None:
            parts["injection"] = self.injection
        return parts

    def cast(self, dtype: torch.dtype) -> "NovelViewModel":
        """All weights in `dtype`; the noise schedule stays in float32."""
        for part in self.children():
            cast_module(part, dtype)
        return self

    def train(self, mode: bool = True) -> "NovelViewModel":
        """The frozen parts stay in evaluation mode."""
        super().train(mode)
        self.vae.eval()
        return self

    # ------------------------------------------------------------------------------ latents

    @torch.no_grad()
    def encode_input_latents(self, images: Tensor) -> Tensor:  # [B, 3, S, S] in [-1, 1]
        """The input view's latents: the posterior's mode. Returns [B, 4, h, w]."""
        return self.input_latents(self.latent_moments(images)[0])

    @torch.no_grad()
    def latent_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:  # [B, 3, S, S] in [-1, 1]
        """Mean and standard deviation of the autoencoder's posterior, unscaled, each [B, 4, h, w] in float32."""
        with torch.autocast(images.device.type, enabled=False):
            posterior = self.vae.encode(images.to(self.vae.dtype)).latent_dist
        return posterior.mean.float(), posterior.std.float()

    def input_latents(self, mean: Tensor) -> Tensor:  # [B, 4, h, w]
        """The posterior's mean in the unit in which the UNet takes the input view. Returns [B, 4, h, w]."""
        return mean * self.vae.config.scaling_factor if self.settings.scale_input_latents else mean

    # --------------------------------------------------------------------------- conditions

    @torch.no_grad()
    def encode_view(
        self,
        images: Tensor,  # [B, 3, S, S] in [-1, 1], of the autoencoder's size
        latents: Tensor | None = None,  # [B, 4, h, w], of `input_latents`, where they are known
        seen: Tensor | None = None,  # [B, 3, S, S], what the encoders see, where that differs
    ) -> EncodedView:
        """What the frozen parts say about input views."""
        if latents is None:
            latents = self.encode_input_latents(images)
        seen = images if seen is None else seen
        layers = self.settings.feature_layers
        encoded = self.image_encoder(seen, layers if self.feature_encoder is None else ())
        levels = encoded.levels if self.feature_encoder is None else self.feature_encoder(seen, layers).levels
        vectors = encoded.pooled[:, None] if self.settings.tokens == "pooled" else encoded.patches
        return EncodedView(latents, vectors, levels)

    def condition(
        self,
        view: EncodedView,  # of B views
        pose: Tensor,  # [B, 4], see camera_pose
        dropout: ConditionDropout | None = None,  # what is left out, in training
    ) -> NovelViewCondition:
        """The UNet's condition; differentiable in the trained layers."""
        vectors = view.vectors
        upstream = self.settings.null_condition == "zero123"
        if dropout is not None and upstream:
            vectors = keep_where(~dropout.image, vectors)
        tokens = self.tokens(vectors, pose)
        features = () if self.injection is None else self.injection(view.levels)
        latents = view.latents
        if dropout is not None:
            latents = keep_where(~dropout.latents, latents)
            features = tuple(keep_where(~dropout.image, maps) for maps in features)
            if not upstream:
                tokens = keep_where(~dropout.image, tokens)
        return NovelViewCondition(latents, tokens, features)

    def forward(
        self,
        noisy: Tensor,  # [B, 4, h, w]
        timesteps: Tensor,  # [B]
        condition: NovelViewCondition,  # of B samples
    ) -> Tensor:
        """What the UNet predicts, in its own prediction type. Returns [B, 4, h, w]."""
        sample, keywords = unet_inputs(noisy.to(self.unet.dtype), condition)
        return self.unet(sample, timesteps, **keywords).sample

    @torch.no_grad()
    def predict_noise(self, noisy: Tensor, timesteps: Tensor, condition: NovelViewCondition) -> Tensor:
        """The estimate of the noise in `noisy` [B, 4, h, w], without a graph; arguments as those of `forward`."""
        prediction = self(noisy, timesteps, condition).to(noisy.dtype)
        return to_epsilon(prediction, noisy, timesteps, self.alphas_cumprod, self.prediction_type)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:  # [B, 4, h, w]
        """Pictures of latents, in [0, 1]: [B, 3, S, S] in float32."""
        with torch.autocast(latents.device.type, enabled=False):
            images = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
        return (images.float() / 2 + 0.5).clamp(0, 1)


def unet_inputs(noisy: Tensor, condition: NovelViewCondition) -> UNetInputs:  # [B, 4, h, w]
    """How the UNet is asked: the input view's latent stands beside the noisy one."""
    features = [maps.to(noisy) for maps in condition.features]  # a new list: the UNet empties it
    keywords = {
        "encoder_hidden_states": condition.tokens.to(noisy),
        "down_intrablock_additional_residuals": features or None,
    }
    return torch.cat([noisy, condition.latents.to(noisy)], dim=1), keywords


def _check_parts(unet: Any, vae: Any, prediction_type: str) -> None:
    check_prediction_type(prediction_type)
    channels = int(vae.config.latent_channels)
    if unet.config.in_channels != 2 * channels or unet.config.out_channels != channels:
        raise UserError(
            f"the unet takes {unet.config.in_channels} channels and answers {unet.config.out_channels}; a novel-view "
            f"model over latents of {channels} channels takes {2 * channels} and answers {channels}"
        )
    if not isinstance(unet.config.cross_attention_dim, int):
        raise UserError("the unet's cross_attention_dim: expected one number for all blocks")


def cast_module(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module with its weights in `dtype`; changed in place."""
    for part in module.modules():
        for tensor in [*part.parameters(recurse=False), *part.buffers(recurse=False)]:
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)
    return module


def widened_for_input_view(unet: Any) -> Any:
    """A text-to-image UNet whose first convolution takes the input view's latent too; its new weights are zero.

    At the start the input latent has no influence, as in zero-1-to-3's main.py. Returns the same UNet, changed.
    """
    old = unet.conv_in
    new = nn.Conv2d(2 * old.in_channels, old.out_channels, old.kernel_size, padding=old.padding).to(old.weight)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
        new.bias.copy_(old.bias)
    unet.conv_in = new
    unet.register_to_config(in_channels=2 * old.in_channels)
    return unet


def square_image(image: Tensor, size: int) -> Tensor:  # [B, 3, H, W] in [0, 1]
    """Square pictures of side `size` in [-1, 1]: [B, 3, size, size]. Raises ValueError for pictures that are not
    square, or have no three channels."""
    if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] != image.shape[3]:
        raise ValueError(f"the input view: expected square pictures [B, 3, S, S], got {list(image.shape)}")
    if image.shape[-1] != size:
        smaller = image.shape[-1] > size
        image = F.interpolate(image, (size, size), mode="bilinear", align_corners=False, antialias=smaller)
    return image * 2.0 - 1.0
