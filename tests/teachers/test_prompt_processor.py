import json
import math

import pytest
import torch

import threestudio
from threestudio.models.prompt_processors.base import PromptProcessor, hash_prompt

SIDE, FRONT, BACK, OVERHEAD = range(4)


@pytest.fixture()
def make(tiny_sd_folder, text_cache):
    def make_processor(**cfg):
        cfg = {"prompt": "a red chair", "pretrained_model_name_or_path": str(tiny_sd_folder), **cfg}
        return threestudio.find("stable-diffusion-prompt-processor")(cfg)

    return make_processor


def cameras(*pairs: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(elevation, azimuth) pairs as a batch."""
    elevation, azimuth = torch.tensor(pairs, dtype=torch.float32).unbind(1)
    return elevation, azimuth, torch.ones(len(pairs))


def test_the_view_that_a_camera_sees(make):
    output = make(front_threshold=30.0)()
    pairs = [
        (0, 0),
        (0, 29),
        (0, 31),
        (0, -29),
        (0, 359),
        (0, 90),
        (0, 180),
        (0, -140),
        (0, 500),
        (59, 0),
        (61, 0),
        (90, 180),
    ]
    seen = output.get_direction_index(*cameras(*pairs)).tolist()
    assert seen == [FRONT, FRONT, SIDE, FRONT, FRONT, SIDE, BACK, BACK, BACK, FRONT, OVERHEAD, OVERHEAD]


def test_view_prompts_and_their_order(make):
    processor = make()
    assert list(processor.direction2idx) == ["side", "front", "back", "overhead"]
    assert processor.prompts_vd == [f"a red chair, {view} view" for view in ("side", "front", "back", "overhead")]
    first = make(view_dependent_prompt_front=True, prompt_back="a car")
    assert first.prompts_vd == [
        "side view of a red chair",
        "front view of a red chair",
        "a car",
        "overhead view of a red chair",
    ]


def test_embeddings_are_conditional_then_unconditional(make, tiny_sd_folder):
    from turboprop.teachers.text import TextEncoder

    output = make(negative_prompt="ugly")()
    encoder = TextEncoder(tiny_sd_folder)
    names = ["a red chair, back view", "a red chair, front view", "ugly", "ugly"]
    expected = encoder.encode(names).local_embeddings
    torch.testing.assert_close(output.get_text_embeddings(*cameras((0, 180), (0, 0))), expected)
    plain = encoder.encode(["a red chair", "a red chair", "ugly", "ugly"]).local_embeddings
    torch.testing.assert_close(output.get_text_embeddings(*cameras((0, 180), (0, 0)), False), plain)


def test_perp_neg_between_front_and_side(make):
    output = make(use_perp_neg=True)()
    embeddings, weights = output.get_text_embeddings_perp_neg(*cameras((0, -30)))
    views = output.text_embeddings_vd
    r = 1 - 30 / 90
    torch.testing.assert_close(embeddings[0], r * views[FRONT] + (1 - r) * views[SIDE])
    assert torch.equal(embeddings[1], output.uncond_text_embeddings[0])
    assert torch.equal(embeddings[2], views[FRONT]) and torch.equal(embeddings[3], views[SIDE])
    expected = [[-(4 * math.exp(-0.5 * r) - 2.426), -(4 * math.exp(-0.5 * (1 - r)) - 2.426)]]
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_perp_neg_between_side_and_back(make):
    output = make(use_perp_neg=True)()
    embeddings, weights = output.get_text_embeddings_perp_neg(*cameras((0, 150)))
    views = output.text_embeddings_vd
    r = 2 - 150 / 90
    torch.testing.assert_close(embeddings[0], r * views[SIDE] + (1 - r) * views[BACK])
    assert torch.equal(embeddings[2], views[SIDE]) and torch.equal(embeddings[3], views[FRONT])
    expected = [[-(math.exp(-0.5 * r) - 0.606), -(math.exp(-0.5 * r) + 0.967)]]
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_perp_neg_from_overhead_pushes_nothing(make):
    output = make(use_perp_neg=True)()
    embeddings, weights = output.get_text_embeddings_perp_neg(*cameras((80, 30)))
    assert torch.equal(embeddings[0], output.text_embeddings_vd[OVERHEAD])
    assert weights.tolist() == [[0.0, 0.0]]


def test_perp_neg_of_a_batch_is_its_cameras(make):
    output = make(use_perp_neg=True, negative_prompt="ugly")()
    pairs = [(0, 10), (0, 100), (70, 0), (0, -170)]
    embeddings, weights = output.get_text_embeddings_perp_neg(*cameras(*pairs))
    positive, unconditional, negative = embeddings.split([4, 4, 8])
    for index, pair in enumerate(pairs):
        alone, weight = output.get_text_embeddings_perp_neg(*cameras(pair))
        together = torch.cat([positive[index, None], unconditional[index, None], negative.unflatten(0, (4, 2))[index]])
        assert torch.equal(together, alone) and torch.equal(weights[index, None], weight)
    with pytest.raises(ValueError, match="perp-neg needs view_dependent_prompting"):
        output.get_text_embeddings_perp_neg(*cameras((0, 0)), view_dependent_prompting=False)


@pytest.mark.parametrize("prompt", ["", "   "])
def test_an_empty_prompt(make, prompt):
    with pytest.raises(ValueError, match="prompt: expected a text, got an empty prompt"):
        make(prompt=prompt)


def test_prompt_debiasing_is_refused(make):
    with pytest.raises(ValueError, match="use_prompt_debiasing: .* not supported"):
        make(use_prompt_debiasing=True)


def test_a_missing_model_is_named(make):
    with pytest.raises(FileNotFoundError, match="no folder /nowhere/model"):
        make(pretrained_model_name_or_path="/nowhere/model")


def test_library_prompts(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="there is no load/prompt_library.json in the working directory"):
        make(prompt="lib:red_chair")
    (tmp_path / "load").mkdir()
    library = {"dreamfusion": ["a Red Chair", "a red car", "a blue car"]}
    (tmp_path / "load/prompt_library.json").write_text(json.dumps(library))
    assert make(prompt="lib:chair_red").prompt == "a Red Chair"
    with pytest.raises(ValueError, match="lib:car: expected one prompt .* got 2, first: 'a red car', 'a blue car'"):
        make(prompt="lib:car")
    with pytest.raises(ValueError, match="lib:boat: expected one prompt .* got 0"):
        make(prompt="lib:boat")
    (tmp_path / "load/prompt_library.json").write_text("[]")
    with pytest.raises(ValueError, match="expected JSON of the form"):
        make(prompt="lib:car")


class LetterCounts(PromptProcessor):
    """A third party's processor: writes its own cache files."""

    @staticmethod
    def spawn_func(pretrained_model_name_or_path, prompts, cache_dir):
        for prompt in prompts:
            path = f"{cache_dir}/{hash_prompt(pretrained_model_name_or_path, prompt)}.pt"
            torch.save(torch.full((2, 3), float(len(prompt))), path)


def test_a_third_partys_processor_encodes_by_its_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = LetterCounts({"prompt": "four", "pretrained_model_name_or_path": "letters"})()
    assert output.text_embeddings.shape == (1, 2, 3) and output.text_embeddings.unique().item() == 4
    assert output.text_embeddings_vd[FRONT].unique().item() == len("four, front view")
    monkeypatch.delattr(LetterCounts, "spawn_func")  # the files are there now
    assert LetterCounts({"prompt": "four", "pretrained_model_name_or_path": "letters"})().text_embeddings.mean() == 4
    with pytest.raises(ValueError, match="encodes no prompts"):
        LetterCounts({"prompt": "five!", "pretrained_model_name_or_path": "letters"})
