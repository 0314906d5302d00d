"""Prompts to text embeddings, with a model folder's tokenizer and text model, kept in a cache.

All prompts of a call are encoded in this process, in batches, and kept in one safetensors file on disk.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from threestudio.utils.staged_files import staged

from .text_encoders import PromptEmbeddings, T5TextEncoder, TextEncoder, is_t5
from .token_limit import TokenLimit
from .weights import TEXT_PARTS, model_folder, part_folder

logger = logging.getLogger(__name__)


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
    """Embeddings of P prompts, on the CPU. Equal prompts are encoded once; each that is too long is warned of. Raises
    as `weights.model_folder` and `TextEncoder`."""
    t5 = is_t5(pretrained_model_name_or_path)
    folder = model_folder(pretrained_model_name_or_path, TEXT_PARTS, prefer_half=t5)
    distinct = list(dict.fromkeys(prompts))
    _warn_of_long_prompts(TokenLimit(pretrained_model_name_or_path), distinct)
    path = cache_folder() / "text" / f"{_cache_key(folder, distinct, half_precision)}.safetensors"
    embeddings = _read_cache(path, len(distinct)) if use_cache else None
    if embeddings is None:
        encoder = T5TextEncoder(folder, device) if t5 else TextEncoder(folder, device)
        encoded = encoder.encode(distinct)
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


def _warn_of_long_prompts(limit: TokenLimit, prompts: Sequence[str]) -> None:
    """Each time, also where their embeddings are in the cache."""
    for prompt in prompts:
        if not limit.fits(prompt):
            read = limit.start_that_fits(prompt, [lambda text: text])
            logger.warning(
                "the prompt %r has %d tokens, the text model takes %d: it reads about %r and leaves out the rest",
                prompt,
                limit.length(prompt),
                limit.tokens,
                read,
            )


def _cache_key(folder: Path, prompts: Sequence[str], half_precision: bool) -> str:
    """Changes with any prompt, their order, the precision, and any file of the tokenizer or the text model."""
    digest = hashlib.sha256()
    for part in TEXT_PARTS:
        for path in sorted(part_folder(folder, part).iterdir()):
            state = path.stat()
            digest.update(f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    digest.update(f"half={half_precision}\n".encode())
    for prompt in prompts:
        digest.update(prompt.encode() + b"\0")
    return digest.hexdigest()[:32]


def _read_cache(path: Path, count: int) -> PromptEmbeddings | None:
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

    try:
        with staged(str(path)) as partial:
            save_file(
                {
                    "local_embeddings": embeddings.local_embeddings,
                    "global_embeddings": embeddings.global_embeddings,
                },
                partial,
            )
    except OSError as error:
        logger.warning("text embeddings are not cached: %s", error)
