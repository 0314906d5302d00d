"""Prompts longer than the text model: the words for the view stay, and what is left out is said each time."""

import json

import pytest
import torch
from turboprop.teachers.token_limit import TokenLimit

import threestudio

LONG = ", ".join(["a red chair with four blue legs"] * 4)  # the tiny text model takes 12 tokens
VIEWS = ("side", "front", "back", "overhead")


@pytest.fixture()
def limit(tiny_sd_folder) -> TokenLimit:
    return TokenLimit(str(tiny_sd_folder))


def test_the_longest_start_that_fits(limit):
    assert limit.tokens == 12
    assert limit.fits("a red chair") and not limit.fits(LONG)
    start = limit.start_that_fits(LONG, [lambda text: f"{text}, overhead view"])
    assert LONG.startswith(start) and 0 < len(start) < len(LONG)
    assert limit.length(f"{start}, overhead view") <= 12
    one_more = " ".join(LONG.split()[: len(start.split()) + 1])
    assert limit.length(f"{one_more}, overhead view") > 12
    assert limit.start_that_fits("a car", [lambda text: text]) == "a car"
    giant = "x" * 200  # one word, of which no start fits
    assert limit.start_that_fits(giant, [lambda text: text]) == giant


def test_what_is_short_opens_no_tokenizer(limit, monkeypatch):
    monkeypatch.setattr(TokenLimit, "length", lambda self, text: pytest.fail("the tokenizer was asked"))
    assert limit.fits("a cat")
    with pytest.raises(pytest.fail.Exception):
        limit.fits(LONG)


def test_the_limit_is_that_of_the_encoder(tiny_sd_folder, tiny_if_folder):
    assert TokenLimit(str(tiny_if_folder)).tokens == 77
    config = json.loads((tiny_sd_folder / "text_encoder/config.json").read_text())
    assert TokenLimit(str(tiny_sd_folder)).tokens == config["max_position_embeddings"]


def different(views: torch.Tensor) -> bool:
    return all(not torch.equal(views[i], views[j]) for i in range(len(views)) for j in range(i))


@pytest.mark.parametrize("first", [False, True])
def test_views_of_a_long_prompt_differ_and_it_is_said_each_time(tiny_sd_folder, text_cache, caplog, first):
    config = {
        "prompt": LONG,
        "pretrained_model_name_or_path": str(tiny_sd_folder),
        "view_dependent_prompt_front": first,
    }
    said = []
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        processor = threestudio.find("stable-diffusion-prompt-processor")(config)
        said.append([record.getMessage() for record in caplog.records if record.levelname == "WARNING"])
        assert different(processor().text_embeddings_vd)
        assert all(view in prompt for view, prompt in zip(VIEWS, processor.prompts_vd))
        assert processor.prompt == LONG
    assert said[0] == said[1] and len(said[0]) == 2
    assert "longer than the 12 tokens" in said[0][0] and repr(LONG) in said[0][1]


def test_views_of_long_prompts_of_a_library_differ(tiny_sd_folder, text_cache):
    config = {"prompts": ["a car", LONG], "pretrained_model_name_or_path": str(tiny_sd_folder)}
    output = threestudio.find("turboprop-multi-prompt-processor")(config)(["a car", LONG])
    assert different(output.view_embeddings[0]) and different(output.view_embeddings[1])


def test_views_that_a_user_makes_equal_are_said(tiny_sd_folder, text_cache, caplog):
    own = {f"prompt_{view}": f"{LONG}, {view}" for view in ("front", "back")}
    config = {"prompt": "a car", "pretrained_model_name_or_path": str(tiny_sd_folder), **own}
    for _ in range(2):
        caplog.clear()
        threestudio.find("stable-diffusion-prompt-processor")(config)
        assert "the front and the back view have the same embedding" in caplog.text


def test_a_prompt_that_fits_is_left_as_it_is(tiny_sd_folder, text_cache, caplog):
    config = {"prompt": "a red chair", "pretrained_model_name_or_path": str(tiny_sd_folder)}
    processor = threestudio.find("stable-diffusion-prompt-processor")(config)
    assert processor.prompts_vd == [f"a red chair, {view} view" for view in VIEWS]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
