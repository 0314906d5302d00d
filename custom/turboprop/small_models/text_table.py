"""The embeddings of all of the world's captions, for a text encoder that is not trained."""

from typing import Any

import torch
from torch import Tensor

from ..world.captions import ObjectSpec, all_captions, caption, short_captions

FULL_SHARE, ONE_COLOR_SHARE = 0.88, 0.08  # of captions; the rest names the kind alone


def caption_of_length(spec: ObjectSpec, draw: float) -> str:
    """A caption by a number in [0, 1): mostly full, sometimes without the second colour, or without both."""
    one_color, no_color = short_captions(spec)
    if draw < FULL_SHARE:
        return caption(spec)
    return one_color if draw < FULL_SHARE + ONE_COLOR_SHARE else no_color


class CaptionTable:
    """Text embeddings [T, N, D] of every full and short caption, and of the empty one."""

    def __init__(self, tokenizer: Any, text_encoder: Any) -> None:
        self.texts = [*all_captions(), ""]
        self.row = {text: index for index, text in enumerate(self.texts)}
        device = next(text_encoder.parameters()).device
        with torch.no_grad():
            tokens = tokenizer(self.texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
            parts = [text_encoder(part.to(device)).last_hidden_state for part in tokens.split(256)]
        self.embeddings = torch.cat(parts)  # [T, N, D]

    def of(self, texts: list[str]) -> Tensor:
        """Embeddings of captions: [len(texts), N, D]."""
        return self.embeddings[[self.row[text] for text in texts]]

    def draw(self, specs: list[ObjectSpec], dropout: float, generator: torch.Generator) -> Tensor:
        """Captions of objects, mostly full, some short, a share of `dropout` empty: [S, N, D]."""
        texts = []
        for spec, (length, dropped) in zip(specs, torch.rand(len(specs), 2, generator=generator).tolist()):
            texts.append("" if dropped < dropout else caption_of_length(spec, length))
        return self.of(texts)
