"""Captions of the world: one caption, one exact object.

Full form: "a red chair with blue legs". The teachers also see the shorter forms
"a red chair" and "a chair", and threestudio's view suffixes (", front view").
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from threestudio.utils.errors import UserError, nearest_names

from .objects import COLORS, KINDS, Kind

VIEWS = ("side", "front", "back", "overhead")


@dataclass(frozen=True)
class ObjectSpec:
    """An object of the world: a kind and its two colour names."""

    kind: str
    main: str
    accent: str

    @property
    def shape(self) -> Kind:
        return KINDS[self.kind]


def with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def caption(spec: ObjectSpec) -> str:
    """The full caption: "an orange lamp with a black base"."""
    accent = spec.shape.accent_phrase
    if accent.startswith("a {}"):
        accent = accent[len("a ") :].format(with_article(spec.accent))
    else:
        accent = accent.format(spec.accent)
    return f"{with_article(spec.main)} {spec.kind} with {accent}"


def short_captions(spec: ObjectSpec) -> tuple[str, str]:
    """Captions that leave out the second colour, and both."""
    return f"{with_article(spec.main)} {spec.kind}", with_article(spec.kind)


def _without_view(text: str) -> str:
    return re.sub(rf", ({'|'.join(VIEWS)}) view$", "", text.strip())


def parse_caption(text: str) -> ObjectSpec:
    """The object that a full caption names; a view suffix is allowed.

    Raises ValueError that names the nearest known word if the caption is not of the world.
    """
    plain = _without_view(text)
    match = re.fullmatch(r"an? (\w+) (\w+) with (?:an? )?(\w+) (\w+)", plain)
    if match is None:
        raise UserError(f'not a caption of the world: "{text}"; expected the form "a red chair with blue legs"')
    main, kind, accent, noun = match.groups()
    for word, known in ((kind, KINDS), (main, COLORS), (accent, COLORS)):
        if word not in known:
            near = nearest_names(word, known, 1) or sorted(known)[:1]
            raise UserError(f'"{word}" in the caption "{text}" is unknown to the world; nearest: "{near[0]}"')
    spec = ObjectSpec(kind, main, accent)
    if caption(spec).rsplit(" ", 1)[1] != noun:
        raise UserError(f'not a caption of the world: "{text}"; did you mean "{caption(spec)}"?')
    return spec


def allowed_specs(text: str) -> list[ObjectSpec]:
    """The objects that a caption allows: one for a full caption, nine for "a red chair", ninety for "a chair".

    A view suffix is allowed. Raises UserError as `parse_caption`, for a text that is of none of the three forms.
    """
    plain = _without_view(text)
    kind = re.fullmatch(r"an? (?:(\w+) )?(\w+)", plain)
    if kind is None or kind[2] not in KINDS or kind[1] not in (None, *COLORS):
        return [parse_caption(text)]
    mains = COLORS if kind[1] is None else (kind[1],)
    return [ObjectSpec(kind[2], main, accent) for main in mains for accent in COLORS if accent != main]


def held_out(kind: str, main: str) -> bool:
    """Whether teachers and generators never see this kind in this main colour (an eighth of all pairs)."""
    return (3 * list(KINDS).index(kind) + list(COLORS).index(main)) % 8 == 5


def all_specs(include_held_out: bool = False) -> list[ObjectSpec]:
    """Every object whose two colours differ, in a fixed order."""
    return [
        ObjectSpec(kind, main, accent)
        for kind in KINDS
        for main in COLORS
        for accent in COLORS
        if main != accent and (include_held_out or not held_out(kind, main))
    ]


def all_captions() -> list[str]:
    """The full and the short captions of every object, each text once, in a fixed order."""
    texts = (text for spec in all_specs(include_held_out=True) for text in (caption(spec), *short_captions(spec)))
    return [*dict.fromkeys(texts)]
