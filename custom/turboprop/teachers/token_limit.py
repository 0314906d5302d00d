"""How much of a prompt a text model reads, and prompts that are shortened so that the words for the view stay.

A text model cuts what is too long at its end, which is where ", front view" stands: without care the views of a long
prompt become one.
"""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from .text_encoders import T5TextEncoder, is_t5, load_tokenizer
from .weights import TEXT_PARTS, model_folder, part_folder


class TokenLimit:
    """The limit of the text model of a folder in diffusers' layout, or of a hub id.

    The tokenizer is opened only for a text that might be too long: none has more tokens than bytes.
    """

    SPECIAL = 2  # tokens that stand around a text at most

    def __init__(self, pretrained_model_name_or_path: str) -> None:
        self._is_t5 = is_t5(pretrained_model_name_or_path)
        self._folder = model_folder(pretrained_model_name_or_path, TEXT_PARTS, prefer_half=self._is_t5)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._folder, self._is_t5)

    @cached_property
    def tokens(self) -> int:
        """The most tokens that the model takes, those around the text included."""
        if self._is_t5:
            return T5TextEncoder.MAX_TOKENS
        config = json.loads((part_folder(self._folder, "text_encoder") / "config.json").read_text(encoding="utf-8"))
        return int(config.get("max_position_embeddings", 77))  # transformers' own default, which a config leaves out

    def length(self, text: str) -> int:
        return len(self._tokenizer(text, verbose=False)["input_ids"])

    def fits(self, text: str) -> bool:
        # A word's end may be a token of its own in some vocabularies: twice the bytes is on the safe side.
        return 2 * len(text.encode()) + self.SPECIAL <= self.tokens or self.length(text) <= self.tokens

    def start_that_fits(self, text: str, forms: Sequence[Callable[[str], str]]) -> str:
        """The longest start of `text`, cut between words, with which all `forms` of it fit.

        Where not even one word fits, the text itself.
        """
        if all(self.fits(form(text)) for form in forms):
            return text
        words = text.split()
        low, high = 0, len(words)  # `low` words fit, `high` do not
        while high - low > 1:
            middle = (low + high) // 2
            start = " ".join(words[:middle]).rstrip(",;: ")
            if all(self.fits(form(start)) for form in forms):
                low = middle
            else:
                high = middle
        return " ".join(words[:low]).rstrip(",;: ") if low else text
