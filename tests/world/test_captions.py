"""Captions, what they name, and the prompt libraries made of them."""

import json
from pathlib import Path

import pytest
import turboprop.world.library as library_module
from turboprop.world.captions import (
    VIEWS,
    ObjectSpec,
    all_specs,
    allowed_specs,
    caption,
    held_out,
    parse_caption,
    short_captions,
)
from turboprop.world.library import SIXTEEN, libraries
from turboprop.world.objects import COLORS, KINDS

LIBRARIES = Path(library_module.__file__).parent / "libraries"


def test_every_caption_names_its_object():
    specs = all_specs(include_held_out=True)
    assert len(specs) == len(KINDS) * len(COLORS) * (len(COLORS) - 1)
    texts = [caption(spec) for spec in specs]
    assert len(set(texts)) == len(texts)
    for spec, text in zip(specs, texts):
        assert parse_caption(text) == spec


@pytest.mark.parametrize("view", VIEWS)
def test_view_suffixes(view):
    for spec in SIXTEEN:
        assert parse_caption(f"{caption(spec)}, {view} view") == spec


def test_wording():
    assert caption(ObjectSpec("chair", "red", "blue")) == "a red chair with blue legs"
    assert caption(ObjectSpec("lamp", "orange", "black")) == "an orange lamp with a black base"
    assert caption(ObjectSpec("mug", "pink", "orange")) == "a pink mug with an orange handle"
    assert short_captions(ObjectSpec("umbrella", "orange", "red")) == ("an orange umbrella", "an umbrella")


@pytest.mark.parametrize(
    "text, word",
    [
        ("a red chiar with blue legs", '"chair"'),
        ("a rad chair with blue legs", '"red"'),
        ("a red chair with blu legs", '"blue"'),
        ("a red chair with blue wheels", "did you mean"),
        ("a red chair with blue gs", "did you mean"),
        ("a red chair", "expected the form"),
        ("", "expected the form"),
        ("a red chair with blue legs, upside view", "expected the form"),
    ],
)
def test_what_is_no_caption_says_what_is_near(text, word):
    with pytest.raises(ValueError, match="caption") as error:
        parse_caption(text)
    assert word in str(error.value) and f'"{text}"' in str(error.value)


def test_a_caption_allows_every_object_that_has_it_among_its_captions():
    specs = all_specs(include_held_out=True)
    by_text = {}
    for spec in specs:
        for text in (caption(spec), *short_captions(spec)):
            by_text.setdefault(text, []).append(spec)
    assert {len(allowed) for allowed in by_text.values()} == {1, 9, 90}
    for text, allowed in by_text.items():
        assert allowed_specs(text) == allowed
    assert allowed_specs("a red chair, back view") == allowed_specs("a red chair")


@pytest.mark.parametrize("text", ["a grey chair", "a red chairs", "a pretty red chair", "chair"])
def test_what_no_object_has_allows_none(text):
    with pytest.raises(ValueError, match="caption"):
        allowed_specs(text)


def test_an_eighth_of_the_pairs_is_held_out():
    pairs = [(kind, color) for kind in KINDS for color in COLORS]
    out = [pair for pair in pairs if held_out(*pair)]
    assert abs(len(out) / len(pairs) - 1 / 8) < 0.01
    assert {kind for kind, _ in out} == set(KINDS)  # every kind and every colour is asked for unseen
    assert {color for _, color in out} == set(COLORS)
    seen = {(spec.kind, spec.main) for spec in all_specs()}
    assert seen == set(pairs) - set(out)


def test_libraries():
    made = libraries()
    sixteen = [caption(spec) for spec in SIXTEEN]
    assert len({spec.kind for spec in SIXTEEN}) == 16
    assert not any(held_out(spec.kind, spec.main) for spec in SIXTEEN)
    assert made["world_16"] == {"train": sixteen, "val": sixteen, "test": sixteen}
    large = made["world_512"]
    assert len(set(large["train"])) == 512
    unseen = large["val"] + large["test"]
    assert len(set(unseen)) == len(unseen) == 48
    assert not any(held_out(s.kind, s.main) for s in map(parse_caption, large["train"]))
    assert all(held_out(s.kind, s.main) for s in map(parse_caption, unseen))


def test_a_held_out_pair_among_the_training_prompts_is_an_error(monkeypatch):
    kind, color = next((k, c) for k in KINDS for c in COLORS if held_out(k, c))
    wrong = ObjectSpec(kind, color, next(c for c in COLORS if c != color))
    monkeypatch.setattr(library_module, "SIXTEEN", (*SIXTEEN[1:], wrong))
    with pytest.raises(ValueError, match="held-out") as error:
        libraries()
    assert caption(wrong) in str(error.value)


@pytest.mark.parametrize("name", ["world_16", "world_512"])
def test_shipped_libraries_are_the_made_ones(name):
    assert json.loads((LIBRARIES / f"{name}.json").read_text()) == libraries()[name]


def test_no_library_is_shipped_that_is_not_made():
    assert {path.stem for path in LIBRARIES.glob("*.json")} == set(libraries())
