"""A prompt processor for guidance that reads no text, e.g. one that is taught by pictures."""

from dataclasses import dataclass

import torch
from torch import Tensor

import threestudio
from threestudio.models.prompt_processors.base import PromptProcessor
from threestudio.utils.typing import Dict, List


@threestudio.register("dummy-prompt-processor")
class DummyPromptProcessor(PromptProcessor):
    """Has every view of the prompt, and empty embeddings [0, 0]; opens no model."""

    @dataclass
    class Config(PromptProcessor.Config):
        prompt: str = ""
        pretrained_model_name_or_path: str = ""

    cfg: Config

    def preprocess_prompt(self, prompt: str) -> str:
        return prompt

    def encode_prompts(self, prompts: List[str]) -> Dict[str, Tensor]:
        return {prompt: torch.zeros(0, 0) for prompt in prompts}
