"""Views of a prompt before a text model: room for their words, and whether they can be told apart."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import threestudio

from ..token_limit import TokenLimit


def shortened_for_views(prompt: str, forms: Sequence[Callable[[str], str]], limit: TokenLimit) -> str:
    """The prompt, or its longest start with which all `forms` of it, one for each view, fit the text model.

    Says so each time that it shortens: the plain prompt and the views then read differently far.
    """
    start = limit.start_that_fits(prompt, forms)
    if start != prompt:
        threestudio.warn(
            f"the prompt is longer than the {limit.tokens} tokens of the text model: prompts of views read "
            f"{forms[0](start)!r}, so that the words for the view are not cut off"
        )
    return start


def warn_of_equal_views(
    names: Sequence[str],  # V
    embeddings: Tensor,  # [V, N, D]
) -> None:
    """Warns of each two views that a teacher cannot tell from one another."""
    for i in range(len(names)):
        for j in range(i):
            if torch.equal(embeddings[i], embeddings[j]):
                both = f"the {names[j]} and the {names[i]} view"
                threestudio.warn(f"{both} have the same embedding: they are one to the teacher")
