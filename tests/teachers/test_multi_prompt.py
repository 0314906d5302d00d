import json

import pytest
import torch
from turboprop.teachers.prompts.library import load_prompt_library

import threestudio

PROMPTS = ["a red chair", "a blue car", "a red car"]


@pytest.fixture()
def make(tiny_sd_folder, text_cache):
    def make_processor(**cfg):
        cfg = {"pretrained_model_name_or_path": str(tiny_sd_folder), **cfg}
        return threestudio.find("turboprop-multi-prompt-processor")(cfg)

    return make_processor


@pytest.fixture()
def make_single(tiny_sd_folder, text_cache):
    def make_processor(prompt, **cfg):
        cfg = {"prompt": prompt, "pretrained_model_name_or_path": str(tiny_sd_folder), **cfg}
        return threestudio.find("stable-diffusion-prompt-processor")(cfg)

    return make_processor


def cameras(batch_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Elevations and azimuths that see every view."""
    azimuth = torch.linspace(-200, 200, batch_size)
    return torch.linspace(-10, 80, batch_size), azimuth, torch.ones(batch_size)


def test_embeddings_of_the_plain_prompts(make, tiny_sd_folder):
    from turboprop.teachers.text import TextEncoder

    output = make(prompts=PROMPTS)(["a red car", "a red chair"])
    expected = TextEncoder(tiny_sd_folder).encode(["a red car", "a red chair"])
    torch.testing.assert_close(output.local_embeddings, expected.local_embeddings)
    torch.testing.assert_close(output.global_embeddings, expected.global_embeddings)


@pytest.mark.parametrize("view_dependent", [True, False])
@pytest.mark.parametrize("views", [1, 4])
def test_mixed_prompts_are_the_single_processors(make, make_single, views, view_dependent):
    names = ["a blue car", "a red chair", "a blue car"]
    output = make(prompts=PROMPTS, negative_prompt="ugly", front_threshold=30.0)(names)
    elevation, azimuth, distances = cameras(3 * views)
    conditional, unconditional = output.get_text_embeddings(elevation, azimuth, distances, view_dependent).chunk(2)
    for index, name in enumerate(names):
        rows = slice(index * views, (index + 1) * views)
        single = make_single(name, negative_prompt="ugly", front_threshold=30.0)()
        expected = single.get_text_embeddings(elevation[rows], azimuth[rows], distances[rows], view_dependent).chunk(2)
        torch.testing.assert_close(conditional[rows], expected[0])
        torch.testing.assert_close(unconditional[rows], expected[1])


def test_perp_neg_of_mixed_prompts_is_the_single_processors(make, make_single):
    names, views = ["a blue car", "a red chair", "a red car"], 5
    output = make(prompts=PROMPTS, use_perp_neg=True)(names)
    elevation, azimuth, distances = cameras(15)
    embeddings, weights = output.get_text_embeddings_perp_neg(elevation, azimuth, distances)
    positive, unconditional, negative = embeddings.split([15, 15, 30])
    negative = negative.unflatten(0, (15, 2))
    for index, name in enumerate(names):
        rows = slice(index * views, (index + 1) * views)
        single = make_single(name, use_perp_neg=True)()
        alone, weight = single.get_text_embeddings_perp_neg(elevation[rows], azimuth[rows], distances[rows])
        torch.testing.assert_close(torch.cat([positive[rows], unconditional[rows]]), alone[: 2 * views])
        torch.testing.assert_close(weights[rows], weight)
        pushing = weight[:, 0] != 0  # an overhead camera's negatives have no part
        torch.testing.assert_close(negative[rows][pushing], alone[2 * views :].unflatten(0, (views, 2))[pushing])


def test_cameras_that_do_not_fit_the_prompts(make):
    output = make(prompts=PROMPTS)(PROMPTS[:2])
    with pytest.raises(
        ValueError, match="as many cameras as prompts, or a multiple of it; got 3 cameras for 2 prompts"
    ):
        output.get_text_embeddings(*cameras(3))
    with pytest.raises(ValueError, match="perp-neg needs view_dependent_prompting"):
        output.get_text_embeddings_perp_neg(*cameras(2), view_dependent_prompting=False)


def test_half_precision_storage_answers_float32(make):
    full, half = (
        make(prompts=PROMPTS)(PROMPTS),
        make(prompts=PROMPTS, half_precision_embeddings=True)(PROMPTS),
    )
    assert half.local_embeddings.dtype == half.global_embeddings.dtype == torch.float32
    torch.testing.assert_close(half.local_embeddings, full.local_embeddings, rtol=1e-3, atol=1e-3)


def test_a_library_file_and_further_prompts(make, tmp_path):
    path = tmp_path / "library.json"
    path.write_text(json.dumps({"train": PROMPTS[:2], "test": ["a red car"]}))
    processor = make(prompt_library=str(path), eval_prompt="a chair", target_prompt="a red chair")
    assert processor.prompts_of("train") == processor.prompts_of("val") == PROMPTS[:2]
    assert processor.prompts_of("test") == ["a red car"]
    assert processor("a chair").global_embeddings.shape == (1, 16)
    assert processor(["a red car"]).prompts == ["a red car"]
    with pytest.raises(ValueError, match="split of train, val, test, got 'tests'; nearest: test"):
        processor.prompts_of("tests")


def test_libraries_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "load").mkdir()
    (tmp_path / "load/mine_prompt_library.json").write_text(json.dumps({"train": ["a", "a"], "val": ["b"]}))
    library = load_prompt_library("mine")
    assert library.split("train") == ["a", "a"] and library.distinct() == ["a", "b"]
    shipped = load_prompt_library("world_512")
    assert len(shipped.split("train")) == 512 and not set(shipped.split("train")) & set(shipped.split("test"))
    (tmp_path / "load/world_512.json").write_text(json.dumps({"train": ["mine"]}))
    assert load_prompt_library("world_512").distinct() == ["mine"]  # the user's own goes before ours


def test_an_unknown_prompt_names_the_nearest(make):
    with pytest.raises(ValueError, match="prompt 'a red chai' is not among the 3 encoded ones; nearest: a red chair"):
        make(prompts=PROMPTS)(["a red chai"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON: .*line 1"),
        ("[]", r"expected \{\"train\": .* got a list"),
        ('{"trian": ["a"]}', "unknown split 'trian'; nearest: train"),
        ("{}", 'is empty: expected at least one prompt in "train"'),
        ('{"train": []}', "is empty"),
        ('{"train": "a"}', "train: expected a list of prompts, got a str"),
        ('{"train": ["a", " "]}', r"train\[1\]: expected a text, got an empty prompt"),
        ('{"train": ["a"], "val": [3]}', r"val\[0\]: expected a text, got 3"),
    ],
)
def test_bad_libraries(tmp_path, content, message):
    path = tmp_path / "library.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load_prompt_library(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({}, "expected prompt_library .* or prompts, got neither"),
        ({"prompts": []}, "prompts is empty: expected at least one prompt"),
        ({"prompts": ["a", ""]}, r"prompts\[1\]: expected a text, got an empty prompt"),
        ({"prompts": ["a"], "prompt_library": "b"}, "expected prompt_library or prompts, got both"),
        ({"prompts": ["a"], "eval_prompt": ""}, r"eval_prompt, target_prompt\[0\]: expected a text"),
    ],
)
def test_bad_configs(make, cfg, message):
    with pytest.raises(ValueError, match=message):
        make(**cfg)


def test_a_missing_library(make):
    with pytest.raises(
        FileNotFoundError,
        match="prompt_library: no file 'nowhere'; looked at nowhere, load/nowhere.json, .*ship: world_16, world_512",
    ):
        make(prompt_library="nowhere")


def test_scaledreamers_name_takes_scaledreamers_keys(tiny_sd_folder, text_cache, tmp_path):
    path = tmp_path / "library.json"
    path.write_text(json.dumps({"train": PROMPTS, "val": PROMPTS, "test": PROMPTS}))
    keys = {
        "prompt_library": str(path),
        "use_perp_neg": True,
        "front_threshold": 30.0,
        "back_threshold": 30.0,
    }
    name = "stable-diffusion-multi-prompt-processor"
    processor = threestudio.find(name)({"pretrained_model_name_or_path": str(tiny_sd_folder), **keys})
    assert processor(PROMPTS).use_perp_neg
