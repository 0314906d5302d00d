"""A CLIP tokenizer for the world's small vocabulary, in the real file format.

Byte-level BPE as CLIP's: any text can be encoded; every word of the world's captions
is one token.
"""

from __future__ import annotations

import json
from pathlib import Path

from .captions import VIEWS, all_captions

MAX_LENGTH = 32  # tokens, start and end included; the longest caption of the world has 14
START, END = "<|startoftext|>", "<|endoftext|>"


def world_words() -> list[str]:
    """Every word of the world's captions, in a fixed order."""
    return sorted({word for text in all_captions() for word in text.split()} | set(VIEWS) | {"view"})


def byte_pair_merges(words: list[str]) -> list[tuple[str, str]]:
    """Merges that make each word one token, by byte-pair counting (Sennrich et al. 2016)."""
    pieces = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    while True:
        counts: dict[tuple[str, str], int] = {}
        for parts in pieces.values():
            for pair in zip(parts, parts[1:]):
                counts[pair] = counts.get(pair, 0) + 1
        if not counts:
            return merges
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for word, parts in pieces.items():
            merged, index = [], 0
            while index < len(parts):
                if tuple(parts[index : index + 2]) == best:
                    merged.append(parts[index] + parts[index + 1])
                    index += 2
                else:
                    merged.append(parts[index])
                    index += 1
            pieces[word] = merged


def build_tokenizer(folder: Path):
    """Write vocab.json and merges.txt into `folder` and return the CLIPTokenizer made from them."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    merges = byte_pair_merges(world_words())
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet)]
    tokens += [a + b for a, b in merges if a + b not in tokens]
    tokens += [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocab, merge_lines = folder / "vocab.json", folder / "merges.txt"
    vocab.write_text(json.dumps({token: index for index, token in enumerate(tokens)}, ensure_ascii=False))
    merge_lines.write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_LENGTH)
