"""Folder names for prompts."""

from __future__ import annotations

import hashlib
import re

MAX_LENGTH = 80  # characters of a folder name before its hash


def prompt_slug(prompt: str) -> str:
    """A folder name for a prompt: letters, digits and underscores only, distinct for distinct prompts.

    A prompt that is plain words is spelled out; one with other characters, or too long,
    gets a short hash.
    """
    words = re.sub(r"[^a-z0-9]+", "_", prompt.lower()).strip("_")
    if words and words.replace("_", " ") == prompt and len(words) <= MAX_LENGTH:
        return words
    digest = hashlib.sha256(prompt.encode()).hexdigest()[:8]
    return f"{words[:MAX_LENGTH].strip('_')}_{digest}".lstrip("_")
