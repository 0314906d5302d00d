"""The world's CLIP tokenizer."""

import pytest
from turboprop.small_models.recipes.mini_sd import make_scheduler, make_text_encoder, make_unet, save_pipeline
from turboprop.small_models.recipes.mini_vae import make_autoencoder
from turboprop.world.captions import VIEWS, all_specs, caption
from turboprop.world.tokenizer import MAX_LENGTH, build_tokenizer, byte_pair_merges, world_words


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def inner(tokenizer, text: str) -> list[int]:
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    return ids[1:-1]


def test_each_word_of_the_world_is_one_token(tokenizer):
    words = world_words()
    ids = [inner(tokenizer, word) for word in words]
    assert all(len(i) == 1 for i in ids)
    assert len({i[0] for i in ids}) == len(words)


def test_captions_fit(tokenizer):
    texts = [f"{caption(spec)}, {view} view" for spec in all_specs(include_held_out=True)[::7] for view in VIEWS]
    lengths = [len(ids) for ids in tokenizer(texts).input_ids]
    assert max(lengths) <= 14 < MAX_LENGTH == tokenizer.model_max_length
    padded = tokenizer(texts[:3], padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert padded.shape == (3, MAX_LENGTH)


@pytest.mark.parametrize(
    "text", ["Zürich at night", "a 漢字 of ink", "wow 😀!?", "x" * 40, "tabs\tand\nlines", "1234 #%&"]
)
def test_any_other_text_can_be_encoded_and_read_back(tokenizer, text):
    ids = inner(tokenizer, text)
    assert tokenizer.unk_token_id not in ids and tokenizer.eos_token_id not in ids
    back = tokenizer.decode(ids)
    assert back.replace(" ", "") == "".join(text.lower().split())


def test_long_text_is_cut(tokenizer):
    assert len(tokenizer("word " * 100, truncation=True).input_ids) == MAX_LENGTH


def test_merges_make_each_word_whole():
    merges = byte_pair_merges(["low", "lower", "a"])
    assert merges[0] == ("l", "o")  # the commonest pair, the first of equals
    joined = {a + b for a, b in merges}
    assert {"low</w>", "lower</w>"} <= joined


def test_stable_diffusion_folder_round_trip(tokenizer, tmp_path):
    from diffusers import StableDiffusionPipeline

    save_pipeline(tmp_path / "model", make_autoencoder(), tokenizer, make_text_encoder(tokenizer), make_unet())
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    text = "an orange lamp with a black base, overhead view, Zürich"
    assert pipeline.tokenizer(text).input_ids == tokenizer(text).input_ids
    assert pipeline.tokenizer.model_max_length == MAX_LENGTH
    assert pipeline.tokenizer("", padding="max_length").input_ids == tokenizer("", padding="max_length").input_ids
    assert pipeline.scheduler.config == make_scheduler().config or (
        pipeline.scheduler.config.prediction_type == "epsilon" and pipeline.scheduler.config.steps_offset == 1
    )
    assert pipeline.unet.config.sample_size == 16
