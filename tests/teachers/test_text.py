import logging
import os

import pytest
import torch
from turboprop.teachers.text import TextEncoder, encode_prompts

PROMPTS = ["a red chair", "", "a blue car, front view"]
LONG = ", ".join(["a red chair"] * 9)


@pytest.fixture(scope="module")
def encoder(tiny_sd_folder):
    return TextEncoder(tiny_sd_folder)


def test_local_embeddings_are_what_stable_diffusion_feeds_its_unet(encoder, tiny_sd_folder):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd_folder)
    theirs, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=False)
    ours = encoder.encode(PROMPTS)
    assert ours.local_embeddings.shape == (3, 12, 16) and ours.global_embeddings.shape == (3, 16)
    torch.testing.assert_close(ours.local_embeddings, theirs)


def test_the_global_embedding_is_the_state_at_the_end_of_the_text(encoder):
    ours = encoder.encode(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        end = len(encoder.tokenizer(prompt)["input_ids"]) - 1
        torch.testing.assert_close(ours.global_embeddings[row], ours.local_embeddings[row, end])


def test_batches_change_nothing(encoder):
    together, one_by_one = encoder.encode(PROMPTS), encoder.encode(PROMPTS, batch_size=1)
    torch.testing.assert_close(together.local_embeddings, one_by_one.local_embeddings)
    torch.testing.assert_close(together.global_embeddings, one_by_one.global_embeddings)


def test_a_long_prompt_keeps_its_end_token(encoder):
    ours = encoder.encode([LONG, "a car"])
    kept = encoder.tokenizer(LONG, truncation=True, max_length=12)["input_ids"]
    assert kept[-1] == encoder.tokenizer.eos_token_id
    torch.testing.assert_close(ours.global_embeddings[0], ours.local_embeddings[0, 11])


def test_a_long_prompt_is_named_each_time(tiny_sd_folder, text_cache, caplog):
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        encode_prompts(str(tiny_sd_folder), [LONG, "a car"])
        (said,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert repr(LONG) in said and "the text model takes 12" in said


def test_cached_embeddings_are_read_without_the_model(tiny_sd_folder, text_cache, monkeypatch):
    first = encode_prompts(str(tiny_sd_folder), PROMPTS)
    (file,) = (text_cache / "text").iterdir()
    assert file.suffix == ".safetensors"
    monkeypatch.setattr(TextEncoder, "encode", None)  # a second encoding would fail
    second = encode_prompts(str(tiny_sd_folder), PROMPTS)
    assert torch.equal(first.local_embeddings, second.local_embeddings)
    assert torch.equal(first.global_embeddings, second.global_embeddings)


def test_other_prompts_precision_and_weights_miss_the_cache(tmp_path, tiny_sd_folder, text_cache):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_sd_folder, folder)
    encode_prompts(str(folder), PROMPTS)
    encode_prompts(str(folder), PROMPTS[:2])
    encode_prompts(str(folder), PROMPTS, half_precision=True)
    os.utime(folder / "text_encoder/model.safetensors", (1, 1))
    encode_prompts(str(folder), PROMPTS)
    assert len(list((text_cache / "text").iterdir())) == 4


def test_a_broken_cache_file_is_replaced(tiny_sd_folder, text_cache, caplog):
    first = encode_prompts(str(tiny_sd_folder), PROMPTS)
    (file,) = (text_cache / "text").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    second = encode_prompts(str(tiny_sd_folder), PROMPTS)
    assert torch.equal(first.local_embeddings, second.local_embeddings)
    assert "are broken" in caplog.text and file.stat().st_size > 100


def test_a_cache_that_cannot_be_written_costs_a_warning(tiny_sd_folder, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TURBOPROP_CACHE", str(tmp_path / "file"))
    assert encode_prompts(str(tiny_sd_folder), PROMPTS).local_embeddings.shape == (3, 12, 16)
    assert "not cached" in caplog.text


def test_without_cache_nothing_is_written(tiny_sd_folder, text_cache):
    encode_prompts(str(tiny_sd_folder), PROMPTS, use_cache=False)
    assert not text_cache.exists()


def test_equal_prompts_have_equal_embeddings(tiny_sd_folder, text_cache):
    ours = encode_prompts(str(tiny_sd_folder), ["a car", "a chair", "a car"])
    assert torch.equal(ours.local_embeddings[0], ours.local_embeddings[2])
    assert not torch.equal(ours.local_embeddings[0], ours.local_embeddings[1])


def test_half_precision(tiny_sd_folder, text_cache):
    half = encode_prompts(str(tiny_sd_folder), PROMPTS, half_precision=True)
    full = encode_prompts(str(tiny_sd_folder), PROMPTS)
    assert half.local_embeddings.dtype == half.global_embeddings.dtype == torch.float16
    assert torch.equal(half.local_embeddings, full.local_embeddings.half())
