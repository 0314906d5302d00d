"""`stable-diffusion-prompt-processor`: one prompt, encoded by a Stable Diffusion folder's text model."""

from torch import Tensor

import threestudio
from threestudio.models.prompt_processors.base import PromptProcessor

from ..text import encode_prompts


class StableDiffusionPromptProcessor(PromptProcessor):
    """One prompt, its views and the negative prompt, encoded in one batch in this process."""

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """The embedding [N, D] of each of some distinct prompts."""
        embeddings = encode_prompts(
            self.cfg.pretrained_model_name_or_path, prompts, device=self.device, use_cache=self.cfg.use_cache
        )
        return dict(zip(prompts, embeddings.local_embeddings))


# An upstream checkout brings its own.
if "stable-diffusion-prompt-processor" not in threestudio.__modules__:
    threestudio.register("stable-diffusion-prompt-processor")(StableDiffusionPromptProcessor)
