"""`stable-diffusion-` and `deep-floyd-prompt-processor`: one prompt, encoded by a model folder's text model."""

from dataclasses import dataclass

from torch import Tensor

import threestudio
from threestudio.models.prompt_processors.base import PromptProcessor

from ..text import encode_prompts
from ..token_limit import TokenLimit
from .views import shortened_for_views, warn_of_equal_views


@threestudio.register("stable-diffusion-prompt-processor")
class StableDiffusionPromptProcessor(PromptProcessor):
    """One prompt, its views and the negative prompt, encoded in one batch in this process."""

    def prompt_for_views(self, prompt: str) -> str:
        """The prompt, or as much of its beginning as leaves room for the words that say the view."""
        limit = TokenLimit(self.cfg.pretrained_model_name_or_path)
        return shortened_for_views(prompt, [direction.prompt for direction in self.directions], limit)

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """The embedding [N, D] of each of some distinct prompts."""
        embeddings = encode_prompts(
            self.cfg.pretrained_model_name_or_path, prompts, device=self.device, use_cache=self.cfg.use_cache
        )
        return dict(zip(prompts, embeddings.local_embeddings))

    def prepare_text_embeddings(self) -> None:
        super().prepare_text_embeddings()
        warn_of_equal_views([direction.name for direction in self.directions], self.text_embeddings_vd)


@threestudio.register("deep-floyd-prompt-processor")
class DeepFloydPromptProcessor(StableDiffusionPromptProcessor):
    """One prompt for DeepFloyd IF: read by T5, up to 77 tokens."""

    @dataclass
    class Config(StableDiffusionPromptProcessor.Config):
        pretrained_model_name_or_path: str = "DeepFloyd/IF-I-XL-v1.0"  # a local folder or a hub id
