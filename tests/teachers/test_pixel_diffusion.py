"""DeepFloyd IF's first stage as a teacher, its text model and its prompt processor."""

import logging
import shutil

import pytest
import torch
from turboprop.teachers import LatentDiffusionTeacher, PixelDiffusionTeacher, TextCondition, load_teacher
from turboprop.teachers.text import encode_prompts
from turboprop.teachers.text_encoders import T5TextEncoder
from turboprop.teachers.weights import GATED, check_folder, model_folder, weight_files, weight_variant

import threestudio
from tests.tiny_deep_floyd import write_tiny_deep_floyd


@pytest.fixture(scope="module")
def half_folder(tmp_path_factory):
    """A model that has the fp16 variant alone."""
    return write_tiny_deep_floyd(tmp_path_factory.mktemp("models") / "half", torch.float16, "fp16")


def question(count: int = 3) -> tuple[torch.Tensor, torch.Tensor, TextCondition]:
    torch.manual_seed(0)
    return torch.randn(count, 3, 8, 8), torch.tensor([3, 500, 990][:count]), TextCondition(torch.randn(count, 77, 24))


def test_the_folder_decides_the_family(tiny_if_folder, tiny_sd_folder):
    teacher = load_teacher(str(tiny_if_folder))
    assert isinstance(teacher, PixelDiffusionTeacher)
    assert (teacher.image_size, teacher.latent_size, teacher.latent_channels) == (8, 8, 3)
    assert teacher.num_timesteps == 1000 and not any(p.requires_grad for p in teacher.unet.parameters())
    assert isinstance(load_teacher(str(tiny_sd_folder)), LatentDiffusionTeacher)


def test_the_first_three_channels_are_the_noise(tiny_if_folder):
    teacher = load_teacher(str(tiny_if_folder))
    noisy, timesteps, condition = question()
    with torch.no_grad():
        answer = teacher.unet(noisy, timesteps, encoder_hidden_states=condition.embeddings).sample
    assert answer.shape == (3, 6, 8, 8)
    epsilon = teacher.predict_noise(noisy, timesteps, condition)
    assert torch.equal(epsilon, answer[:, :3]) and not epsilon.requires_grad


def test_pixels_are_latents(tiny_if_folder):
    teacher = load_teacher(str(tiny_if_folder))
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    assert torch.equal(teacher.decode(teacher.encode(images)), images)
    # the squared-cosine schedule of Nichol and Dhariwal 2021, equation 17, is far from latent diffusion's
    assert teacher.alphas_cumprod[0] > 0.999 and teacher.alphas_cumprod[-1] < 1e-3
    half = torch.cos(torch.tensor((0.5 + 0.008) / 1.008 * torch.pi / 2)) ** 2
    torch.testing.assert_close(teacher.alphas_cumprod[499], half, rtol=2e-2, atol=1e-3)


def test_what_is_not_a_first_stage_is_refused(tiny_if_folder, tiny_sd_folder):
    unet = LatentDiffusionTeacher.from_pretrained(str(tiny_sd_folder)).unet
    schedule = torch.linspace(0.999, 0.001, 1000)
    with pytest.raises(ValueError, match="takes 4 channels and answers 4; expected a pixel-space model"):
        PixelDiffusionTeacher(unet, schedule, "epsilon")
    teacher = load_teacher(str(tiny_if_folder))
    with pytest.raises(ValueError, match="prediction_type: expected one of"):
        PixelDiffusionTeacher(teacher.unet, schedule, "flow")


def test_the_half_precision_variant_loads_by_itself(half_folder):
    teacher = load_teacher(str(half_folder))
    noisy, timesteps, condition = question()
    assert teacher.unet.dtype == torch.float32 and teacher.predict_noise(noisy, timesteps, condition).isfinite().all()
    assert encode_prompts(str(half_folder), ["a car"], use_cache=False).local_embeddings.dtype == torch.float32


def test_which_weights_are_taken(tiny_if_folder, half_folder, tmp_path):
    both = shutil.copytree(tiny_if_folder, tmp_path / "both")
    for part in ("unet", "text_encoder"):
        for path in weight_files(half_folder, part):
            shutil.copy(path, both / part)
    assert (weight_variant(both, "unet"), weight_variant(both, "unet", prefer_half=True)) == (None, "fp16")
    assert weight_variant(tiny_if_folder, "unet", prefer_half=True) is None
    for name in ("model-00001-of-00002.fp16.safetensors", "model.fp16-00001-of-00002.safetensors"):
        folder = tmp_path / name
        (folder / "text_encoder").mkdir(parents=True)
        (folder / "text_encoder" / name).touch()
        assert weight_variant(folder, "text_encoder") == "fp16"


# ------------------------------------------------------------------------------------------------------- the text


def test_tokens_are_those_of_the_sentencepiece_model(tiny_if_folder):
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tiny_if_folder / "tokenizer/spiece.model"))
    encoder = T5TextEncoder(tiny_if_folder)
    for prompt in ("a red chair, front view", "", "A zebra's car"):
        assert encoder.tokenizer(prompt).input_ids == [*pieces.encode(prompt), 1]


def test_embeddings_are_the_encoders_of_77_tokens(tiny_if_folder, text_cache):
    prompts = ["a red chair", "a blue car, side view"]
    embeddings = encode_prompts(str(tiny_if_folder), prompts)
    assert embeddings.local_embeddings.shape == (2, 77, 24)
    encoder = T5TextEncoder(tiny_if_folder)
    tokens = encoder.tokenizer(prompts[0], return_tensors="pt")  # without padding
    with torch.no_grad():
        alone = encoder.model(**tokens).last_hidden_state[0]
    torch.testing.assert_close(embeddings.local_embeddings[0, : len(alone)], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embeddings.global_embeddings[0], alone.mean(dim=0), rtol=1e-4, atol=1e-5)
    files = list(text_cache.rglob("*.safetensors"))
    again = encode_prompts(str(tiny_if_folder), prompts)
    assert len(files) == 1 and torch.equal(again.local_embeddings, embeddings.local_embeddings)


def test_a_long_prompt_is_cut_and_named(tiny_if_folder, caplog):
    long = "a red chair, " * 40
    with caplog.at_level(logging.WARNING):
        embeddings = encode_prompts(str(tiny_if_folder), [long, "a car"], use_cache=False)
    assert embeddings.local_embeddings.shape == (2, 77, 24)
    assert [repr(long) in record.getMessage() for record in caplog.records] == [True]


def test_its_prompt_processor(tiny_if_folder, text_cache):
    cfg = {"prompt": "a red chair", "pretrained_model_name_or_path": str(tiny_if_folder)}
    processor = threestudio.find("deep-floyd-prompt-processor")
    output = processor(cfg)()
    assert output.text_embeddings_vd.shape == (4, 77, 24) and output.uncond_text_embeddings.shape == (1, 77, 24)
    assert not torch.equal(output.text_embeddings_vd[1], output.text_embeddings_vd[2])
    assert processor.Config().pretrained_model_name_or_path == "DeepFloyd/IF-I-XL-v1.0"


# -------------------------------------------------------------------------------------------------- what is wrong


def test_a_whole_folder_passes_and_a_missing_tokenizer_is_named(tiny_if_folder, tmp_path):
    parts = ("unet", "scheduler", "tokenizer", "text_encoder")
    check_folder(tiny_if_folder, parts)
    folder = shutil.copytree(tiny_if_folder, tmp_path / "model")
    (folder / "tokenizer/spiece.model").unlink()
    with pytest.raises(FileNotFoundError, match="lacks tokenizer/vocab.json or tokenizer.json or spiece.model"):
        check_folder(folder, parts)


def test_a_broken_tokenizer_is_one_line(tiny_if_folder, tmp_path):
    folder = shutil.copytree(tiny_if_folder, tmp_path / "model")
    (folder / "tokenizer/spiece.model").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot load tokenizer of") as error:
        T5TextEncoder(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", GATED)
def test_gated_weights_that_cannot_be_fetched_say_what_to_do(name, monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for ask in (model_folder, lambda model: model_folder(model, prefer_half=True)):
        message = f"{name} is gated: accept its licence on https://huggingface.co/{name}"
        with pytest.raises(FileNotFoundError, match=message) as error:
            ask(name)
        assert "hf auth login" in str(error.value) and "\n" not in str(error.value)
