"""`turboprop-3dconv-net`: the prompt-conditioned geometry as a threestudio module."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import threestudio
from threestudio.models.geometry.base import BaseGeometry
from threestudio.utils.errors import UserError

from .conv_generator import ConvGenerator
from .field import Field, FieldHeads, SpaceCache, make_cache


@threestudio.register("turboprop-3dconv-net")
class ConvNetGeometry(BaseGeometry):
    """ScaleDreamer's 3DConv-net: pooled text (and noise) to one signed distance field a prompt."""

    @dataclass
    class Config(BaseGeometry.Config):
        radius: float = 2.0  # half the side of the bounding cube, world units
        text_dim: int = 1024  # width of the pooled text embedding: 1024 for Stable Diffusion 2.1, 128 for mini-sd
        noise_dim: int = 64  # width of the noise that varies an object; 0 for one object a prompt
        style_dim: int = 256  # width of the style that modulates every layer
        feature_dim: int = 32  # features by voxel
        hidden_dim: int = 64  # width of the two heads
        n_feature_dims: int = 3  # colour logits by point
        # Width of the synthesis network at 4^3, 8^3, ...; the last is the grid's resolution.
        channels: list[int] = field(default_factory=lambda: [512, 512, 512, 256, 128, 64])
        constant_bias_up_to: int = 64  # largest resolution whose layers learn a bias by voxel
        layer_noise: bool = True  # noise of learned strength in every layer while training
        sphere_radius: float = 0.8  # the first shape, the same for every prompt, world units
        finite_difference_eps: float = 0.01  # step of normals and of the eikonal gradient, world units

    cfg: Config

    def configure(self) -> None:
        cfg = self.cfg
        for key in ("radius", "text_dim", "style_dim", "feature_dim", "hidden_dim", "finite_difference_eps"):
            if getattr(cfg, key) <= 0:
                raise UserError(f"geometry.{key}: expected more than 0, got {getattr(cfg, key)}")
        if not 0 < cfg.sphere_radius < cfg.radius:
            raise UserError(
                f"geometry.sphere_radius: expected between 0 and geometry.radius ({cfg.radius:g}), got "
                f"{cfg.sphere_radius:g}"
            )
        self.generator = ConvGenerator(
            text_dim=cfg.text_dim,
            noise_dim=cfg.noise_dim,
            style_dim=cfg.style_dim,
            feature_dim=cfg.feature_dim,
            channels={4 * 2**i: width for i, width in enumerate(cfg.channels)},
            constant_bias_up_to=cfg.constant_bias_up_to,
        )
        self.heads = FieldHeads(cfg.feature_dim, cfg.hidden_dim, cfg.n_feature_dims, cfg.sphere_radius)

    def check_text(self, text_embed: Tensor) -> None:  # [P, T]
        """Raises ValueError for a pooled text of another width than the config's."""
        if text_embed.shape[-1] != self.cfg.text_dim:
            raise UserError(
                f"geometry.text_dim: the text encoder's pooled embedding has width {text_embed.shape[-1]}, "
                f"the config says {self.cfg.text_dim}"
            )

    def generate_space_cache(self, styles: Tensor, text_embed: Tensor) -> SpaceCache:
        """Noise [P, Z] and pooled text [P, T] to the fields of P prompts.

        Raises ValueError for a text of another width.
        """
        self.check_text(text_embed)
        noisy = self.cfg.layer_noise and self.training
        return make_cache(self.generator(styles, text_embed, noisy))

    def field_of(self, cache: SpaceCache) -> Field:
        return Field(self.heads, cache, self.cfg.radius)

    def forward(self, points: Tensor, space_cache: SpaceCache, output_normal: bool = False) -> dict[str, Tensor]:
        """points [P, N, 3] of each prompt, world units -> sdf [P, N, 1], features [P, N, C].

        With `output_normal` also sdf_grad and normal, each [P, N, 3].
        """
        prompts, count = points.shape[:2]
        if prompts != space_cache.prompts:
            raise ValueError(f"points of {prompts} prompts were given for a cache of {space_cache.prompts}")
        owner = torch.arange(prompts, device=points.device).repeat_interleave(count)
        flat, field_ = points.reshape(-1, 3), self.field_of(space_cache)
        features = field_.features(flat, owner)
        distance = self.heads.signed_distance(flat, features)
        output = {
            "sdf": distance.reshape(prompts, count, 1),
            "features": self.heads.color(features).reshape(prompts, count, -1),
        }
        if output_normal:
            gradient = field_.gradient(flat, owner, self.cfg.finite_difference_eps, distance)
            output["sdf_grad"] = gradient.reshape(prompts, count, 3)
            output["normal"] = torch.nn.functional.normalize(output["sdf_grad"], dim=-1)
        return output

    @staticmethod
    def create_from(other: BaseGeometry, cfg: Any | None = None, **kwargs: Any) -> ConvNetGeometry:
        raise TypeError(f"a prompt-conditioned generator cannot be made from a {type(other).__name__}")


@threestudio.register("3DConv-net")
class ScaleDreamerConvNetGeometry(ConvNetGeometry):
    """The 3DConv-net, under ScaleDreamer's name."""
