"""`turboprop-multi-prompt-processor`: the embeddings of a whole library of prompts, and of their views."""

from collections.abc import Sequence
from dataclasses import dataclass

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
from threestudio.utils.devices import sent
from threestudio.utils.errors import UserError, with_suggestion

from ..text import encode_prompts
from ..token_limit import TokenLimit
from .library import PromptLibrary, chosen_library, prompt_list
from .views import shortened_for_views

PLAIN = 4  # where the plain prompt stands behind its four views


@dataclass
class MultiPromptOutput:
    """The embeddings of P prompts of one step, and the rule by which B cameras get theirs.

    B is P times the number V of views of each prompt: cameras b * V to (b + 1) * V - 1 look at prompt b.
    """

    prompts: list[str]  # P
    local_embeddings: Tensor  # [P, N, D], of the plain prompts
    global_embeddings: Tensor  # [P, D], of the plain prompts
    view_embeddings: Tensor  # [P, 4, N, D], of the views
    uncond_embeddings: Tensor  # [N, D], of the negative prompt
    directions: list[DirectionConfig]  # which view a camera sees
    keys: ViewKeys  # how strongly perp-neg pushes away

    @property
    def use_perp_neg(self) -> bool:
        return self.keys.use_perp_neg

    @property
    def prompt(self) -> str:
        """The prompts as one text, for labels."""
        return " | ".join(self.prompts)

    def get_text_embeddings(
        self,
        elevation: Tensor,  # [B], degrees
        azimuth: Tensor,  # [B], degrees
        camera_distances: Tensor,  # [B]
        view_dependent_prompting: bool = True,
    ) -> Tensor:
        """Conditional, then unconditional embeddings [2B, N, D]. Raises ValueError if B is no multiple of P."""
        rows = self._prompt_rows(elevation)
        if view_dependent_prompting:
            conditional = self.view_embeddings[rows, self._view(elevation, azimuth, camera_distances)]
        else:
            conditional = self.local_embeddings[rows]
        return torch.cat([conditional, self.uncond_embeddings.expand_as(conditional)])

    def get_text_embeddings_perp_neg(
        self,
        elevation: Tensor,  # [B], degrees
        azimuth: Tensor,  # [B], degrees
        camera_distances: Tensor,  # [B]
        view_dependent_prompting: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Embeddings [4B, N, D] and the weights of the negatives [B, 2], see `perp_neg_embeddings`.

        Raises ValueError if B is no multiple of P, or if `view_dependent_prompting` is false.
        """
        if not view_dependent_prompting:
            raise UserError("perp-neg needs view_dependent_prompting: expected true, got false")
        rows = self._prompt_rows(elevation)
        unconditional = self.uncond_embeddings.expand(len(rows), -1, -1)
        overhead = self._view(elevation, azimuth, camera_distances) == OVERHEAD
        return perp_neg_embeddings(self.view_embeddings[rows], unconditional, azimuth, overhead, self.keys)

    def _view(self, elevation: Tensor, azimuth: Tensor, camera_distances: Tensor) -> Tensor:  # each [B]
        """The view that each camera sees. Returns [B]."""
        return direction_index(self.directions, elevation, azimuth, camera_distances)

    def _prompt_rows(self, elevation: Tensor) -> Tensor:
        """The prompt of each camera. Returns [B]."""
        views, rest = divmod(elevation.shape[0], len(self.prompts))
        if rest or not views:
            raise ValueError(
                f"expected as many cameras as prompts, or a multiple of it; got {elevation.shape[0]} cameras "
                f"for {len(self.prompts)} prompts"
            )
        return torch.arange(len(self.prompts), device=elevation.device).repeat_interleave(views)


@threestudio.register("turboprop-multi-prompt-processor")
class MultiPromptProcessor(BaseObject):
    """Encodes a library once, in batches; a call looks its prompts up."""

    @dataclass
    class Config(ViewKeys):
        # a local folder or a hub id
        pretrained_model_name_or_path: str = "stabilityai/stable-diffusion-2-1-base"
        prompt_library: str = ""  # a JSON file, or the name of one in load/ or that ships
        prompts: list[str] | None = None  # a list of prompts, in place of a library
        eval_prompt: str | None = None  # one more prompt to encode, that need not be in the library
        target_prompt: str | None = None  # and another, to interpolate to
        negative_prompt: str = ""
        use_cache: bool = True  # keep embeddings on disk
        half_precision_embeddings: bool = False  # store float16: half the memory of a large library
        spawn: bool = True  # accepted; prompts are always encoded in this process

    cfg: Config

    def configure(self) -> None:
        cfg = self.cfg
        self.library = self.chosen_prompts()
        extra = [text for text in (cfg.eval_prompt, cfg.target_prompt) if text is not None]
        if extra:
            prompt_list(extra, "eval_prompt, target_prompt")
        names = list(dict.fromkeys([*self.library.distinct(), *extra]))
        self._rows = {name: row for row, name in enumerate(names)}
        self._directions = view_directions(cfg)
        self._limit = TokenLimit(cfg.pretrained_model_name_or_path)
        texts = [text for name in names for text in (*self._view_prompts(name), name)]
        embeddings = encode_prompts(
            cfg.pretrained_model_name_or_path,
            [cfg.negative_prompt, *texts],
            device=self.device,
            use_cache=cfg.use_cache,
            half_precision=cfg.half_precision_embeddings,
        )
        self._uncond = embeddings.local_embeddings[0].to(self.device, torch.float32)  # [N, D]
        self._last: MultiPromptOutput | None = None  # of the last call
        self._local = embeddings.local_embeddings[1:].unflatten(0, (len(names), PLAIN + 1))  # [P, 5, N, D], on the CPU
        self._global = embeddings.global_embeddings[1:].unflatten(0, (len(names), PLAIN + 1))[:, PLAIN]  # [P, D]

    def chosen_prompts(self) -> PromptLibrary:
        return chosen_library(self.cfg.prompt_library, self.cfg.prompts, "prompt processor")

    def _view_prompts(self, name: str) -> list[str]:
        """The four view prompts of a prompt, whose words for the view are not cut off."""
        forms = [direction.prompt for direction in self._directions]
        start = shortened_for_views(name, forms, self._limit)
        return [form(start) for form in forms]

    def prompts_of(self, split: str) -> list[str]:
        """The library's prompts of "train", "val" or "test". Raises ValueError for another name."""
        return self.library.split(split)

    def __call__(self, prompts: str | Sequence[str]) -> MultiPromptOutput:
        """The embeddings of P prompts, float32, on this object's device. Raises ValueError for an unknown prompt."""
        names = [prompts] if isinstance(prompts, str) else list(prompts)
        last = self._last  # threads may ask side by side
        if last is None or last.prompts != names:  # a step asks for its prompts more than once
            last = self._last = self._output(names)
        return last

    def _output(self, names: list[str]) -> MultiPromptOutput:
        rows = torch.tensor([self._row(name) for name in names])
        local = sent(self._local[rows], self._uncond)
        return MultiPromptOutput(
            prompts=names,
            local_embeddings=local[:, PLAIN],
            global_embeddings=sent(self._global[rows], self._uncond),
            view_embeddings=local[:, :PLAIN],
            uncond_embeddings=self._uncond,
            directions=self._directions,
            keys=self.cfg,
        )

    def _row(self, name: str) -> int:
        if name not in self._rows:
            message = f"prompt {name!r} is not among the {len(self._rows)} encoded ones"
            raise UserError(with_suggestion(message, name, self._rows))
        return self._rows[name]
