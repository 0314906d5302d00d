"""What all prompt-conditioned geometries share: their config's common keys, and asking a made field at points."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from threestudio.models.geometry.base import BaseGeometry
from threestudio.utils.errors import UserError

from .field import Field


class GeneratorGeometry(BaseGeometry):
    """Text (and noise) to one signed distance field a prompt."""

    @dataclass
    class Config(BaseGeometry.Config):
        radius: float = 2.0  # half the side of the bounding cube, world units
        text_dim: int = 1024  # width of the text embedding: 1024 for Stable Diffusion 2.1, 128 for the small teachers
        hidden_dim: int = 64  # width of the networks that read features
        n_feature_dims: int = 3  # colour logits by point
        sphere_radius: float = 0.8  # the first shape, the same for every prompt, world units
        finite_difference_eps: float = 0.01  # step of normals and of the eikonal gradient, world units

    cfg: Config
    positive_keys: ClassVar[tuple[str, ...]] = ("radius", "text_dim", "hidden_dim", "finite_difference_eps")
    local_text = False  # whether the text is an embedding of each token [P, N, T], not a pooled one [P, T]

    def configure(self) -> None:
        cfg = self.cfg
        for key in self.positive_keys:
            if cfg[key] <= 0:
                raise UserError(f"geometry.{key}: expected more than 0, got {cfg[key]}")
        if not 0 < cfg.sphere_radius < cfg.radius:
            raise UserError(
                f"geometry.sphere_radius: expected between 0 and geometry.radius ({cfg.radius:g}), got "
                f"{cfg.sphere_radius:g}"
            )

    @abstractmethod
    def generate_space_cache(self, styles: Tensor, text_embed: Tensor) -> Field:
        """Noise [P, Z] and text [P, T] (or [P, N, T], with `local_text`) to the fields of P prompts.

        Raises ValueError for a text of another width.
        """

    def check_text(self, text_embed: Tensor) -> None:  # [..., T]
        """Raises ValueError for a text of another width than the config's."""
        if text_embed.shape[-1] != self.cfg.text_dim:
            raise UserError(
                f"geometry.text_dim: the text encoder's embedding has width {text_embed.shape[-1]}, "
                f"the config says {self.cfg.text_dim}"
            )

    def forward(self, points: Tensor, space_cache: Field, output_normal: bool = False) -> dict[str, Tensor]:
        """points [P, N, 3] of each prompt, world units -> sdf [P, N, 1], features [P, N, C].

        With `output_normal` also sdf_grad and normal, each [P, N, 3].
        """
        prompts, count = points.shape[:2]
        if prompts != space_cache.prompts:
            raise ValueError(f"points of {prompts} prompts were given for a cache of {space_cache.prompts}")
        owner = torch.arange(prompts, device=points.device).repeat_interleave(count)
        flat, heads = points.reshape(-1, 3), space_cache.heads
        features = space_cache.features(flat, owner)
        distance = heads.signed_distance(flat, features, owner)
        output = {
            "sdf": distance.reshape(prompts, count, 1),
            "features": heads.color_logits(features, owner).reshape(prompts, count, -1),
        }
        if output_normal:
            gradient = space_cache.gradient(flat, owner, self.cfg.finite_difference_eps, distance)
            output["sdf_grad"] = gradient.reshape(prompts, count, 3)
            output["normal"] = torch.nn.functional.normalize(output["sdf_grad"], dim=-1)
        return output

    @staticmethod
    def create_from(other: BaseGeometry, cfg: Any | None = None, **kwargs: Any) -> GeneratorGeometry:
        raise TypeError(f"a prompt-conditioned generator cannot be made from a {type(other).__name__}")
