"""Folder names of prompts."""

import re

import pytest
from turboprop.amortized.names import prompt_slug

HOSTILE = [
    "../../etc/passwd", "..", ".", "/", "\\\\share\\x", "a/b", "a b/", "~root", "con\x00trol", "line\nbreak", "!!!", "",
    " ", "漢字", "Zürich", "é" * 200, "a" * 300, "word " * 80, "-rf", "*?<>|\":", "A red car", "a_red_car",
    "a  red car", "a red car.", "a red car/", "😀", "x" * 80, "x" * 81,
]  # fmt: skip


@pytest.mark.parametrize("prompt", HOSTILE, ids=range(len(HOSTILE)))
def test_names_are_safe(prompt, tmp_path):
    name = prompt_slug(prompt)
    assert re.fullmatch(r"[a-z0-9][a-z0-9_]*", name) and len(name) <= 90
    (tmp_path / name).mkdir()
    assert (tmp_path / name).parent.samefile(tmp_path)


def test_names_are_distinct_and_always_the_same():
    prompts = [*HOSTILE, "a red car"]
    names = [prompt_slug(prompt) for prompt in prompts]
    assert len(set(names)) == len(names)
    assert len({name.lower() for name in names}) == len(names)  # on file systems that know no case, too
    assert names == [prompt_slug(prompt) for prompt in prompts]


def test_plain_words_are_spelled_out():
    assert prompt_slug("a red mushroom with a white stem") == "a_red_mushroom_with_a_white_stem"
    assert prompt_slug("A red car, front view").startswith("a_red_car_front_view_")
