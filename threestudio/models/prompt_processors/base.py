"""Prompts, their text embeddings, and which of them a camera gets.

The views always stand in the order side, front, back, overhead. Angles are in degrees. Embeddings are answered in the
order (conditional, unconditional).
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

import threestudio
from threestudio.models.prompt_processors.views import (
    OVERHEAD,
    DirectionConfig,
    ViewKeys,
    direction_index,
    perp_neg_embeddings,
    view_directions,
)
from threestudio.utils.base import BaseObject
from threestudio.utils.errors import MissingFileError, UserError


def hash_prompt(model: str, prompt: str) -> str:
    """The name, without ending, of the cache file of a prompt's embedding under a text model."""
    return hashlib.md5(f"{model}-{prompt}".encode()).hexdigest()


@dataclass
class PromptProcessorOutput:
    """The embeddings of one prompt, and the rule by which a camera gets its own."""

    text_embeddings: Tensor  # [1, N, D], of the plain prompt
    uncond_text_embeddings: Tensor  # [1, N, D], of the negative prompt
    text_embeddings_vd: Tensor  # [4, N, D], of the views
    uncond_text_embeddings_vd: Tensor  # [4, N, D]
    directions: list[DirectionConfig]
    direction2idx: dict[str, int]
    use_perp_neg: bool
    perp_neg_f_sb: tuple[float, float, float]
    perp_neg_f_fsb: tuple[float, float, float]
    perp_neg_f_fs: tuple[float, float, float]
    perp_neg_f_sf: tuple[float, float, float]
    prompt: str = ""
    prompts_vd: list[str] = field(default_factory=list)

    def get_direction_index(
        self,
        elevation: Tensor,  # [B]
        azimuth: Tensor,  # [B]
        camera_distances: Tensor,  # [B]
    ) -> Tensor:
        """The view that each camera sees: the last one whose condition holds. Returns [B], int64."""
        return direction_index(self.directions, elevation, azimuth, camera_distances)

    def get_text_embeddings(
        self,
        elevation: Tensor,  # [B]
        azimuth: Tensor,  # [B]
        camera_distances: Tensor,  # [B]
        view_dependent_prompting: bool = True,
    ) -> Tensor:
        """Conditional, then unconditional embeddings of B cameras. Returns [2B, N, D]."""
        if view_dependent_prompting:
            index = self.get_direction_index(elevation, azimuth, camera_distances)
            return torch.cat([self.text_embeddings_vd[index], self.uncond_text_embeddings_vd[index]])
        batch_size = elevation.shape[0]
        return torch.cat(
            [
                self.text_embeddings.expand(batch_size, -1, -1),
                self.uncond_text_embeddings.expand(batch_size, -1, -1),
            ]
        )

    def get_text_embeddings_perp_neg(
        self,
        elevation: Tensor,  # [B]
        azimuth: Tensor,  # [B]
        camera_distances: Tensor,  # [B]
        view_dependent_prompting: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Embeddings [4B, N, D] and the weights of the negatives [B, 2], see `perp_neg_embeddings`."""
        if not view_dependent_prompting:
            raise UserError("perp-neg needs view_dependent_prompting: expected true, got false")
        index = self.get_direction_index(elevation, azimuth, camera_distances)
        views = self.text_embeddings_vd.expand(index.shape[0], -1, -1, -1)
        return perp_neg_embeddings(views, self.uncond_text_embeddings_vd[index], azimuth, index == OVERHEAD, self)


class PromptProcessor(BaseObject):
    """One prompt and its views.

    A subclass says how prompts become embeddings: by `encode_prompts`, or, as plugins written for threestudio do, by
    the static `spawn_func`, which writes one cache file a prompt.
    """

    @dataclass
    class Config(ViewKeys):
        # or "lib:word_word": the one prompt of load/prompt_library.json with these words
        prompt: str = "a hamburger"

        # the prompt of a view, where it is not the prompt with a phrase for the view
        prompt_front: str | None = None
        prompt_side: str | None = None
        prompt_back: str | None = None
        prompt_overhead: str | None = None
        negative_prompt: str = ""
        pretrained_model_name_or_path: str = "runwayml/stable-diffusion-v1-5"  # a local folder or a hub id
        use_cache: bool = True  # keep embeddings on disk
        spawn: bool = True  # accepted; prompts are always encoded in this process

        use_prompt_debiasing: bool = False  # only false is supported
        pretrained_model_name_or_path_prompt_debiasing: str = "bert-base-uncased"
        prompt_debiasing_mask_ids: list[int] | None = None

    cfg: Config

    def configure(self) -> None:
        if self.cfg.use_prompt_debiasing:
            raise UserError("use_prompt_debiasing: prompt debiasing is not supported; expected false, got true")
        self._cache_dir = ".threestudio_cache/text_embeddings"
        self.directions = self.make_directions()
        self.direction2idx = {direction.name: index for index, direction in enumerate(self.directions)}
        self.prompt = self.preprocess_prompt(self.cfg.prompt)
        threestudio.info(f"Using prompt [{self.prompt}] and negative prompt [{self.cfg.negative_prompt}]")
        self.negative_prompt = self.cfg.negative_prompt
        plain = self.prompt_for_views(self.prompt)
        self.prompts_vd = [
            self.cfg.get(f"prompt_{direction.name}") or direction.prompt(plain) for direction in self.directions
        ]
        self.negative_prompts_vd = [direction.negative_prompt(self.negative_prompt) for direction in self.directions]
        self.prepare_text_embeddings()

    def make_directions(self) -> list[DirectionConfig]:
        """The four views; where the conditions of several hold, the last one counts."""
        return view_directions(self.cfg)

    def preprocess_prompt(self, prompt: str) -> str:
        """The prompt itself, or the one of the library that `lib:word_word` names. Raises UserError."""
        if not prompt.strip():
            raise UserError("system.prompt_processor.prompt: expected a text, got an empty prompt")
        if prompt.startswith("lib:"):
            return _library_prompt(prompt[len("lib:") :])
        return prompt

    def prompt_for_views(self, prompt: str) -> str:
        """The prompt that the words for a view are put to. Here: the prompt itself."""
        return prompt

    def prepare_text_embeddings(self) -> None:
        """Encodes all prompts and keeps their embeddings on this object's device."""
        prompts = [self.prompt, self.negative_prompt, *self.prompts_vd, *self.negative_prompts_vd]
        embeddings = self.encode_prompts(list(dict.fromkeys(prompts)))

        def stack(names: list[str]) -> Tensor:
            return torch.stack([embeddings[name].to(self.device) for name in names])

        self.text_embeddings = stack([self.prompt])  # [1, N, D]
        self.uncond_text_embeddings = stack([self.negative_prompt])
        self.text_embeddings_vd = stack(self.prompts_vd)  # [4, N, D]
        self.uncond_text_embeddings_vd = stack(self.negative_prompts_vd)

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """The embedding [N, D] of each of some distinct prompts. Here: by `spawn_func` and its cache files."""
        os.makedirs(self._cache_dir, exist_ok=True)
        missing = [
            prompt for prompt in prompts if not (self.cfg.use_cache and os.path.isfile(self._cache_file(prompt)))
        ]
        if missing:
            self.spawn_func(self.cfg.pretrained_model_name_or_path, missing, self._cache_dir)
        return {prompt: self.load_from_cache(prompt) for prompt in prompts}

    @staticmethod
    def spawn_func(pretrained_model_name_or_path: str, prompts: list[str], cache_dir: str) -> None:
        """Writes each prompt's embedding [N, D] to `{cache_dir}/{hash_prompt(model, prompt)}.pt`, by torch.save."""
        raise UserError(
            "this prompt processor encodes no prompts: its class defines neither encode_prompts nor spawn_func"
        )

    def load_from_cache(self, prompt: str) -> Tensor:
        """The embedding [N, D] in a prompt's cache file. Raises FileNotFoundError."""
        path = self._cache_file(prompt)
        if not os.path.isfile(path):
            raise MissingFileError(
                f"text embedding of {prompt!r} by {self.cfg.pretrained_model_name_or_path} not found at {path}"
            )
        return torch.load(path, map_location=self.device, weights_only=True)

    def _cache_file(self, prompt: str) -> str:
        return os.path.join(self._cache_dir, f"{hash_prompt(self.cfg.pretrained_model_name_or_path, prompt)}.pt")

    def __call__(self) -> PromptProcessorOutput:
        cfg = self.cfg
        return PromptProcessorOutput(
            text_embeddings=self.text_embeddings,
            uncond_text_embeddings=self.uncond_text_embeddings,
            text_embeddings_vd=self.text_embeddings_vd,
            uncond_text_embeddings_vd=self.uncond_text_embeddings_vd,
            directions=self.directions,
            direction2idx=self.direction2idx,
            use_perp_neg=cfg.use_perp_neg,
            perp_neg_f_sb=tuple(cfg.perp_neg_f_sb),
            perp_neg_f_fsb=tuple(cfg.perp_neg_f_fsb),
            perp_neg_f_fs=tuple(cfg.perp_neg_f_fs),
            perp_neg_f_sf=tuple(cfg.perp_neg_f_sf),
            prompt=self.prompt,
            prompts_vd=self.prompts_vd,
        )


def _library_prompt(keywords: str) -> str:
    """The one prompt of load/prompt_library.json that has all words of `word_word`, whatever their case."""
    path = Path("load/prompt_library.json")
    if not path.is_file():
        raise UserError(f"system.prompt_processor.prompt=lib:{keywords}: there is no {path} in the working directory")
    try:
        prompts = json.loads(path.read_text(encoding="utf-8"))["dreamfusion"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path}: expected JSON of the form {{"dreamfusion": ["...", ...]}}, got {error!r}') from error
    words = keywords.lower().split("_")
    found = [prompt for prompt in prompts if all(word in prompt.lower() for word in words)]
    if len(found) != 1:
        raise UserError(
            f"system.prompt_processor.prompt=lib:{keywords}: expected one prompt of {path} with these words, "
            f"got {len(found)}" + (f", first: {found[0]!r}, {found[1]!r}" if found else "")
        )
    return found[0]
