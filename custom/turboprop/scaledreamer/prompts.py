"""Libraries of prompts as ScaleDreamer's configs name them, and its processor of many prompts."""

from __future__ import annotations

from dataclasses import dataclass

import threestudio
from threestudio.utils.errors import UserError

from ..teachers.prompts.library import PromptLibrary, chosen_library
from ..teachers.prompts.multi import MultiPromptProcessor
from .keys import only


@dataclass
class LibraryKeys:
    """Where a library of prompts is."""

    prompt_library_dir: str = "load"  # the folder of a library that is given by its name
    prompt_library_format: str = "json"  # the only one


def named_library(cfg: LibraryKeys, where: str) -> PromptLibrary:
    """The library of a config with these keys. Raises UserError as `chosen_library`."""
    only("prompt_library_format", cfg.prompt_library_format, "json")
    return chosen_library(cfg.prompt_library, cfg.prompts, where, cfg.prompt_library_dir)


@threestudio.register("stable-diffusion-multi-prompt-processor")
class StableDiffusionMultiPromptProcessor(MultiPromptProcessor):
    @dataclass
    class Config(MultiPromptProcessor.Config, LibraryKeys):
        eval_prompt_target: str | None = None  # our target_prompt
        use_local_text_embeddings: bool = False  # not read: the geometry says what it reads
        use_prompt_debiasing: bool = False  # true is not available
        cache_dir: str = ""  # not read: embeddings lie in this project's cache

    cfg: Config

    def configure(self) -> None:
        if self.cfg.use_prompt_debiasing:
            raise UserError("prompt_processor.use_prompt_debiasing: not available for many prompts, expected false")
        if self.cfg.eval_prompt_target is not None:
            self.cfg.target_prompt = self.cfg.eval_prompt_target
        super().configure()

    def chosen_prompts(self) -> PromptLibrary:
        return named_library(self.cfg, "prompt processor")
