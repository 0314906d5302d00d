"""Prompts to text embeddings, with a model folder's CLIP tokenizer and text model.

All prompts of a call are encoded in this process, in batches, and kept in one safetensors file on disk.
"""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor

from .weights import TEXT_PARTS, model_folder, weight_variant

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptEmbeddings:
    """The embeddings of P prompts."""

    local_embeddings: (
        Tensor  # [P, N, D]: the text model's last hidden states, as StableDiffusionPipeline feeds them
    )
    global_embeddings: Tensor  # [P, D]: its pooled output, the state at the end-of-text token


class TextEncoder:
    """CLIP tokenizer and text model of a folder in diffusers' layout.

    Args:
        folder: the model folder, with tokenizer/ and text_encoder/.
        device: where the text model runs.

    Raises:
        ValueError: a part that does not load.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        from safetensors import SafetensorError
        from transformers import CLIPTextModel, CLIPTokenizer

        part = "tokenizer"
        try:
            self.tokenizer: Any = CLIPTokenizer.from_pretrained(str(folder / part))
            part = "text_encoder"
            with _no_progress_bar():
                self.model: Any = CLIPTextModel.from_pretrained(
                    str(folder / part), dtype=torch.float32, variant=weight_variant(folder, part)
                )
        except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"pretrained_model_name_or_path: cannot load {part} of {folder}: {reason}"
            ) from error
        self.model = self.model.to(device).eval().requires_grad_(False)
        self.max_tokens = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], batch_size: int = 64) -> PromptEmbeddings:
        """Embeddings of P prompts, float32, on the text model's device.

        A prompt that is too long loses its last words, never its end-of-text token, with a warning that names it.
        """
        local, pooled = [], []
        for start in range(0, len(prompts), batch_size):
            tokens = self._tokenize(list(prompts[start : start + batch_size]))
            output = self.model(**tokens)
            local.append(output.last_hidden_state)
            pooled.append(output.pooler_output)
        return PromptEmbeddings(torch.cat(local), torch.cat(pooled))

    def _tokenize(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        tokens = self.tokenizer(
            prompts, padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
        )
        lengths = [len(ids) for ids in self.tokenizer(prompts, verbose=False)["input_ids"]]
        for prompt, length in zip(prompts, lengths):
            if length > self.max_tokens:
                logger.warning(
                    "the prompt %r has %d tokens, the text model takes %d: its end is left out",
                    prompt,
                    length,
                    self.max_tokens,
                )
        device = self.model.device
        arguments = {"input_ids": tokens["input_ids"].to(device)}
        if self.model.config.to_dict().get("use_attention_mask"):
            arguments["attention_mask"] = tokens["attention_mask"].to(device)
        return arguments


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


def cache_folder() -> Path:
    """Where embeddings are kept: $TURBOPROP_CACHE, else turboprop/ in $XDG_CACHE_HOME, else in ~/.cache."""
    if "TURBOPROP_CACHE" in os.environ:
        return Path(os.environ["TURBOPROP_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "turboprop"


def encode_prompts(
    pretrained_model_name_or_path: str,  # a folder in diffusers' layout or a hub id
    prompts: Sequence[str],
    device: torch.device | str = "cpu",  # where the text model runs; it is freed afterwards
    use_cache: bool = True,
    half_precision: bool = False,  # store and return float16
) -> PromptEmbeddings:
    """Embeddings of P prompts, on the CPU. Equal prompts are encoded once.

    Raises:
        FileNotFoundError, ValueError: as `weights.model_folder` and `TextEncoder`.
    """
    folder = model_folder(pretrained_model_name_or_path, TEXT_PARTS)
    distinct = list(dict.fromkeys(prompts))
    path = cache_folder() / "text" / f"{_cache_key(folder, distinct, half_precision)}.safetensors"
    embeddings = _read_cache(path, len(distinct)) if use_cache else None
    if embeddings is None:
        encoded = TextEncoder(folder, device).encode(distinct)
        dtype = torch.float16 if half_precision else torch.float32
        embeddings = PromptEmbeddings(
            encoded.local_embeddings.to("cpu", dtype), encoded.global_embeddings.to("cpu", dtype)
        )
        if use_cache:
            _write_cache(path, embeddings)
    if len(distinct) == len(prompts):
        return embeddings
    place = {prompt: index for index, prompt in enumerate(distinct)}
    rows = torch.tensor([place[prompt] for prompt in prompts])
    return PromptEmbeddings(embeddings.local_embeddings[rows], embeddings.global_embeddings[rows])


def _cache_key(folder: Path, prompts: Sequence[str], half_precision: bool) -> str:
    """Changes with any prompt, their order, the precision, and any file of the tokenizer or the text model."""
    digest = hashlib.sha256()
    for part in TEXT_PARTS:
        for path in sorted((folder / part).iterdir()):
            state = path.stat()
            digest.update(f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    digest.update(f"half={half_precision}\n".encode())
    for prompt in prompts:
        digest.update(prompt.encode() + b"\0")
    return digest.hexdigest()[:32]


def _read_cache(path: Path, count: int) -> Optional[PromptEmbeddings]:
    """The embeddings in a cache file; None if there is none, or if it is not whole."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
        embeddings = PromptEmbeddings(tensors["local_embeddings"], tensors["global_embeddings"])
    except (SafetensorError, OSError, KeyError) as error:
        logger.warning("the cached text embeddings %s are broken (%s): encoding again", path, error)
        return None
    return embeddings if embeddings.local_embeddings.shape[0] == count else None


def _write_cache(path: Path, embeddings: PromptEmbeddings) -> None:
    """Writes a cache file whole or not at all; a cache that cannot be written costs a warning only."""
    from safetensors.torch import save_file

    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {
                "local_embeddings": embeddings.local_embeddings,
                "global_embeddings": embeddings.global_embeddings,
            },
            temporary,
        )
        temporary.replace(path)
    except OSError as error:
        logger.warning("text embeddings are not cached: %s", error)
