"""The one contract between diffusion priors and distillation methods.

A teacher is a frozen diffusion prior. Whatever its network predicts, it answers in epsilon, so no distillation
method knows which teacher it has. Images inside teachers are [B, 3, H, W] in [-1, 1].
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from threestudio.utils.errors import UserError

from .noise_schedule import add_noise


class Condition(Protocol):
    """What a teacher is asked about, one entry for each sample of a batch."""

    def cat(self, others: Sequence[Self]) -> Self:
        """This condition followed by the others along the batch."""
        ...

    def take(self, count: int) -> Self:
        """The condition of the first `count` samples."""
        ...

    def __len__(self) -> int:
        """The number of samples."""
        ...


ConditionT = TypeVar("ConditionT", bound=Condition)


@dataclass(frozen=True)
class TextCondition:
    """Text embeddings, one sequence of tokens for each sample."""

    embeddings: Tensor  # [B, N, D]

    def cat(self, others: Sequence["TextCondition"]) -> "TextCondition":
        return TextCondition(torch.cat([self.embeddings, *(other.embeddings for other in others)]))

    def take(self, count: int) -> "TextCondition":
        return TextCondition(self.embeddings[:count])

    def __len__(self) -> int:
        return self.embeddings.shape[0]


@dataclass(frozen=True)
class Cameras:
    """The cameras of B samples, as a batch of the host has them."""

    elevation: Tensor  # [B] degrees
    azimuth: Tensor  # [B] degrees
    distance: Tensor  # [B] world units
    c2w: Tensor | None = None  # [B, 4, 4], OpenGL axes
    fovy: Tensor | None = None  # [B] radians

    def repeat_interleave(self, count: int) -> "Cameras":
        """Each camera `count` times in a row."""
        angles = (value.repeat_interleave(count, 0) for value in (self.elevation, self.azimuth, self.distance))
        known = (None if value is None else value.repeat_interleave(count, 0) for value in (self.c2w, self.fovy))
        return Cameras(*angles, *known)


class Teacher(ABC, Generic[ConditionT]):
    """A frozen diffusion prior over latents [B, latent_channels, latent_size, latent_size].

    Its parameters never receive gradients. `encode` and `decode` are differentiable in their input;
    `predict_noise` is evaluated without a graph.
    """

    image_size: int  # side of the images that `encode` takes, in pixels
    latent_channels: int
    latent_size: int  # side of the latents
    alphas_cumprod: Tensor  # [T], decreasing in t, on the teacher's device

    @property
    def num_timesteps(self) -> int:
        return self.alphas_cumprod.shape[0]

    @property
    def device(self) -> torch.device:
        return self.alphas_cumprod.device

    @abstractmethod
    def encode(
        self,
        images: Tensor,  # [B, 3, image_size, image_size] in [-1, 1]
        noise: Tensor | None = None,  # [B, C, h, w]; None: drawn from torch's global generator
    ) -> Tensor:
        """Latents of images [B, C, h, w], in the unit that the diffusion runs in; differentiable in `images`."""

    def encoding_noise(self, images: Tensor) -> Tensor | None:  # [B, 3, H, W]
        """What `encode` draws for these images where no noise is given, by the same draws [B, C, h, w]; here none."""
        return None

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:  # [B, C, h, w]
        """Images of latents. Returns [B, 3, image_size, image_size], near [-1, 1], differentiable in `latents`."""

    def condition(self, embeddings: Tensor, cameras: Cameras | None, num_views: int = 1) -> Condition:
        """What the teacher is asked about B samples: a text each [B, N, D], and where it wants to know, their cameras.

        Samples come in sets of `num_views` of one object. Here the text is all. Raises ValueError where the teacher
        needs what is not given, or knows single views alone.
        """
        if num_views != 1:
            raise UserError(f"n_view: this teacher knows single views alone, expected 1, got {num_views}")
        return TextCondition(embeddings)

    @abstractmethod
    def predict_noise(
        self,
        noisy: Tensor,  # [B, C, h, w]
        timesteps: Tensor,  # [B], integer in [0, T)
        condition: ConditionT,  # of B samples
    ) -> Tensor:
        """The teacher's estimate of the noise in `noisy`: [B, C, h, w] in the type of `noisy`, without a graph."""

    def add_noise(
        self,
        latents: Tensor,  # [B, C, h, w]
        noise: Tensor,  # [B, C, h, w]
        timesteps: Tensor,  # [B]
    ) -> Tensor:
        """The forward process at `timesteps`. Returns [B, C, h, w]."""
        return add_noise(latents, noise, timesteps, self.alphas_cumprod)
