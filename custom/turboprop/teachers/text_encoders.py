"""The text models of diffusion models: CLIP's, as Stable Diffusion has it, and T5's, as DeepFloyd IF has it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .loading import load_part
from .weights import part_classes, weight_variant


@dataclass(frozen=True)
class PromptEmbeddings:
    """The embeddings of P prompts."""

    local_embeddings: Tensor  # [P, N, D]: the text model's last hidden states, as the pipeline feeds them
    global_embeddings: Tensor  # [P, D]: CLIP's pooled output, at the end-of-text token; the mean over T5's tokens


class _TextModel:
    """A tokenizer and a text model; a subclass says which of the model's numbers are the embeddings."""

    tokenizer: Any
    model: Any
    max_tokens: int

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], batch_size: int = 64) -> PromptEmbeddings:
        """Embeddings of P prompts, float32, on the text model's device.

        A prompt that is too long loses its last words, never its end-of-text token.
        """
        parts = []
        for start in range(0, len(prompts), batch_size):
            tokens = _tokenized(self.tokenizer, list(prompts[start : start + batch_size]), self.max_tokens)
            parts.append(self._embedded({name: value.to(self.model.device) for name, value in tokens.items()}))
        local, pooled = zip(*parts)
        return PromptEmbeddings(torch.cat(local), torch.cat(pooled))

    def _embedded(self, tokens: dict[str, Tensor]) -> tuple[Tensor, Tensor]:  # each [P, N]
        """Local [P, N, D] and global [P, D] embeddings."""
        raise NotImplementedError


class TextEncoder(_TextModel):
    """CLIP tokenizer and text model of a folder in diffusers' layout.

    Args:
        folder: the model folder, with tokenizer/ and text_encoder/.
        device: where the text model runs.
    Raises UserError for a part that does not load.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        from transformers import CLIPTextModel

        self.tokenizer = load_tokenizer(folder, t5=False)
        variant = weight_variant(folder, "text_encoder")
        model = _loaded(CLIPTextModel, folder, "text_encoder", dtype=torch.float32, variant=variant)
        self.model = model.to(device).eval().requires_grad_(False)
        self.max_tokens = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)

    def _embedded(self, tokens: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        if not self.model.config.to_dict().get("use_attention_mask"):
            del tokens["attention_mask"]
        output = self.model(**tokens)
        return output.last_hidden_state, output.pooler_output


class T5TextEncoder(_TextModel):
    """T5 tokenizer and encoder of a folder in diffusers' layout.

    IF's has 4.8 billion parameters: 10 GB in float16, which is what runs on a GPU, and 19 GB in float32, on a CPU.

    Args, Raises: as `TextEncoder`.
    """

    MAX_TOKENS = 77  # as DeepFloyd IF was trained (diffusers' IFPipeline.encode_prompt)

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        from transformers import T5EncoderModel

        self.tokenizer = load_tokenizer(folder, t5=True)
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.float16
        variant = weight_variant(folder, "text_encoder", prefer_half=True)
        model = _loaded(T5EncoderModel, folder, "text_encoder", dtype=dtype, variant=variant)
        self.model = model.to(device).eval().requires_grad_(False)
        self.max_tokens = self.MAX_TOKENS

    def _embedded(self, tokens: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        states = self.model(**tokens).last_hidden_state.float()  # [P, N, D]
        mask = tokens["attention_mask"][..., None].to(states)
        return states, (states * mask).sum(dim=1) / mask.sum(dim=1)


def is_t5(pretrained_model_name_or_path: str) -> bool:
    """Whether a model's text is read by T5 and not by CLIP. Raises as `weights.part_classes`."""
    return part_classes(pretrained_model_name_or_path).get("text_encoder") == "T5EncoderModel"


def load_tokenizer(folder: Path, t5: bool) -> Any:
    from transformers import CLIPTokenizer, T5Tokenizer

    return _loaded(T5Tokenizer if t5 else CLIPTokenizer, folder, "tokenizer")


def _tokenized(tokenizer: Any, prompts: list[str], max_tokens: int) -> dict[str, Tensor]:
    """input_ids and attention_mask, each [P, max_tokens]; what is too long is cut."""
    tokens = tokenizer(prompts, padding="max_length", max_length=max_tokens, truncation=True, return_tensors="pt")
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def _loaded(part_class: Any, folder: Path, part: str, **options: Any) -> Any:
    with _no_progress_bar():
        return load_part(part_class, folder, part, **options)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Without transformers' progress bar, which a text model's fraction of a second does not need."""
    from transformers.utils import logging as transformers_logging

    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()
