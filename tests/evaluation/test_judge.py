"""The shipped judge is right on true renders and not fooled by wrong ones; and how it is trained."""

import math

import pytest
import torch
from turboprop.evaluation.check_judge import check_judge
from turboprop.evaluation.clip_metrics import embed_texts
from turboprop.evaluation.judge_pictures import degrade, hard_negatives, pictures_of_nothing, recolored
from turboprop.small_models.recipes.judge import contrastive_loss
from turboprop.world.captions import ObjectSpec, caption
from turboprop.world.dataset import sample_specs


@pytest.fixture(scope="module")
def rows(judge):
    return {row.pictures: row for row in check_judge(judge, by_kind=2, seed=1)}


def test_true_pictures_retrieve_their_captions(rows):
    assert rows["true"].r_at_1 > 0.65 and rows["true"].r_at_1_of_16 > 0.95 and rows["true"].sim > 0.8


def test_pairs_held_out_from_the_teachers_are_known_to_the_judge(rows):
    held_out = rows["true, held out from teachers"]
    assert held_out.r_at_1 > 0.6 and held_out.r_at_1_of_16 > 0.95 and held_out.sim > 0.78


def test_blurred_pictures_are_still_recognised(rows):
    assert rows["true at a quarter of the resolution"].r_at_1_of_16 > 0.9


@pytest.mark.parametrize(
    "error",
    [
        "colours swapped",
        "wrong main colour",
        "wrong second colour",
        "wrong kind",
        "ball of the main colour",
        "empty",
        "noise",
    ],
)
def test_wrong_pictures_do_not_pass(rows, error):
    assert rows[error].r_at_1 < 0.05
    assert rows[error].ranked_below > 0.93
    assert rows[error].sim < rows["true"].sim - 0.2


def test_the_judge_is_small_and_opens_with_transformers(judge, judge_folder):
    from transformers import CLIPModel

    weights = judge_folder / "model.safetensors"
    assert weights.stat().st_size < 3e6
    assert CLIPModel.from_pretrained(judge_folder).config.projection_dim == judge.model.config.projection_dim
    assert (judge_folder / "README.md").is_file()


def test_every_caption_of_the_world_has_features_of_its_own(judge):
    from turboprop.world.captions import all_specs

    features = embed_texts(judge, [caption(spec) for spec in all_specs(include_held_out=True)])
    cosines = features @ features.T - 2 * torch.eye(len(features))
    assert float(cosines.max()) < 0.999


def test_contrastive_loss_by_hand():
    images = torch.eye(3)  # two pictures with captions, and one of nothing
    texts = torch.eye(3)[[0, 1, 0]]  # the third caption repeats the first and must not count against it
    loss = contrastive_loss(images, texts, ["a", "b", "a"], 2, torch.tensor(1.0))
    e = math.e
    first_picture = -math.log(e / (e + 1))  # its own, and "b"
    second_picture = -math.log(e / (e + 2))
    text = -math.log(e / (e + 2))  # its own, the other picture, and the picture of nothing
    assert float(loss) == pytest.approx(0.5 * ((first_picture + second_picture) / 2 + text), abs=1e-6)


def test_hard_negatives_are_never_the_object_itself():
    generator = torch.Generator().manual_seed(0)
    for spec in sample_specs(200, generator, include_held_out=True):
        for other in [*hard_negatives(spec, generator), recolored(spec, generator)]:
            assert other != spec and other.main != other.accent


def test_degraded_pictures_keep_shape_range_and_content():
    generator = torch.Generator().manual_seed(0)
    grey = torch.full((8, 3, 32, 32), 0.5)
    changed = degrade(grey, generator)
    assert changed.shape == grey.shape and changed.min() >= 0 and changed.max() <= 1
    assert float((changed.mean((1, 2, 3)) - 0.5).abs().max()) < 0.07
    same = degrade(grey, torch.Generator().manual_seed(0))
    assert torch.equal(changed, same)


def test_pictures_of_nothing_are_pictures():
    specs = [ObjectSpec("chair", "red", "blue")] * 16
    pictures = pictures_of_nothing(specs, 32, torch.Generator().manual_seed(0))
    assert pictures.shape == (16, 3, 32, 32) and pictures.min() >= 0 and pictures.max() <= 1
    assert len({round(float(p.std()), 4) for p in pictures}) > 8
