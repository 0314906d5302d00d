"""Sim and R@1 by hand, and the loading of judges."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from turboprop.evaluation.clip_metrics import clip_scores, embed_images, embed_texts, load_judge, score_features
from turboprop.evaluation.judge import make_judge, save_judge
from turboprop.world.tokenizer import build_tokenizer

from threestudio.utils.errors import UserError


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Path:
    """A judge with random weights, in its folder."""
    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(0)
    tokenizer = build_tokenizer(folder)
    save_judge(folder, make_judge(tokenizer), tokenizer)
    return folder


def unit(*angles: float) -> torch.Tensor:  # [N, 2]
    return torch.tensor([[math.cos(a), math.sin(a)] for a in angles])


def test_sim_and_recall_by_hand():
    texts = unit(0.0, math.pi / 2)
    views = torch.stack([unit(0.1, 0.2, 1.5), unit(1.6, 1.5, 1.4)])  # the third view of the first prompt goes astray
    scores = score_features(["a", "b"], views, ["a", "b"], texts)
    assert scores.sim[0] == pytest.approx((math.cos(0.1) + math.cos(0.2) + math.cos(1.5)) / 3, abs=1e-6)
    assert scores.r_at_1 == pytest.approx([2 / 3, 1.0])
    assert scores.mean_r_at_1 == pytest.approx(5 / 6)
    assert scores.mean_sim == pytest.approx(sum(scores.sim) / 2)


def test_recall_depends_on_the_gallery():
    views = unit(0.3)[None]
    assert score_features(["a"], views, ["a"], unit(0.0)).r_at_1 == [1.0]
    assert score_features(["a"], views, ["a", "b"], unit(0.0, 0.4)).r_at_1 == [0.0]


def test_a_view_that_is_not_finite_retrieves_nothing():
    views = torch.stack([torch.full((2,), math.nan), torch.tensor([1.0, 0.0])])[None]
    assert score_features(["a"], views, ["a", "b"], unit(0.0, math.pi / 2)).r_at_1 == [0.5]


def test_one_prompt_given_twice_does_not_rival_itself(untrained):
    judge = load_judge(untrained)
    images = torch.rand(2, 2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    scores = clip_scores(judge, ["a red chair", "a red chair"], images)
    assert scores.gallery == ["a red chair"] and scores.r_at_1 == [1.0, 1.0]


def test_scores_do_not_depend_on_the_batch(untrained):
    judge = load_judge(untrained)
    images = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    texts = ["a red chair with blue legs", "a blue car with red wheels", "something else, entirely"]
    assert torch.allclose(embed_images(judge, images, 2), embed_images(judge, images, 5), atol=1e-5)
    assert torch.allclose(embed_texts(judge, texts, 1), embed_texts(judge, texts, 3), atol=1e-5)


def test_features_equal_those_of_clip_model_itself(untrained):
    judge = load_judge(untrained)
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    tokens = judge.tokenizer(["a red chair", "a car"], padding=True, return_tensors="pt")
    with torch.no_grad():
        output = judge.model(pixel_values=(images - 0.5) / 0.25, **tokens)
    assert torch.allclose(embed_images(judge, images), output.image_embeds, atol=1e-5)
    assert torch.allclose(embed_texts(judge, ["a red chair", "a car"]), output.text_embeds, atol=1e-5)


def test_a_long_prompt_is_cut_and_not_refused(untrained):
    assert torch.isfinite(embed_texts(load_judge(untrained), ["a very long prompt " * 60])).all()


BROKEN = {
    "weights that are missing": ({"model.safetensors": None}, "its weights"),
    "weights that are no weights": ({"model.safetensors": "version https://git-lfs"}, "its weights"),
    "a config that is no JSON": ({"config.json": "{"}, "config.json"),
    "a config of another form": ({"config.json": "[]"}, "config.json"),
    "settings of pictures that lack the mean": ({"preprocessor_config.json": "{}"}, "preprocessor_config.json"),
    "a tokenizer that is missing": ({"tokenizer.json": None, "vocab.json": None}, "its tokenizer"),
}


@pytest.mark.parametrize("changes, part", BROKEN.values(), ids=BROKEN)
def test_a_folder_with_a_broken_part_is_one_line(untrained, tmp_path, changes, part):
    folder = shutil.copytree(untrained, tmp_path / "judge")
    for name, content in changes.items():
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_text(content)
    with pytest.raises(UserError, match=f'^the judge ".*judge": cannot load {part}: .') as caught:
        load_judge(folder)
    assert "\n" not in str(caught.value)


def test_bad_input_is_named(untrained, tmp_path):
    judge = load_judge(untrained)
    with pytest.raises(ValueError, match="lacks the prompt"):
        clip_scores(judge, ["a"], torch.rand(1, 1, 3, 8, 8), gallery=["b"])
    with pytest.raises(ValueError, match="2 prompts, 1 sets"):
        clip_scores(judge, ["a", "b"], torch.rand(1, 1, 3, 8, 8))
    with pytest.raises(ValueError, match="square"):
        embed_images(judge, torch.rand(1, 3, 8, 9))
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        load_judge(tmp_path)
    with pytest.raises(FileNotFoundError, match="no CLIP model"):
        load_judge(tmp_path / "absent")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ValueError, match='model_type "bert"'):
        load_judge(tmp_path)
