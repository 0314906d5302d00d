"""One report from views and meshes."""

import json
import math

import pytest
import torch
import trimesh
from turboprop.evaluation.cameras import evaluation_cameras
from turboprop.evaluation.clip_metrics import clip_scores, embed_images, embed_texts
from turboprop.evaluation.report import evaluate_views, world_gallery

PROMPTS = ["a red mushroom with a white stem", "a blue duck with an orange beak", "a photo of something else"]
VIEWS, SIZE = 4, 32


@pytest.fixture(scope="module")
def views(exact_views):
    rgb, alpha = exact_views(PROMPTS[:2], VIEWS, SIZE)
    return torch.cat([rgb, rgb[:1]]), torch.cat([alpha, alpha[:1]])


def evaluate(views, judge, meshes=None, **changed):
    cameras = evaluation_cameras(VIEWS)
    arguments = {
        "prompts": PROMPTS, "rgb": views[0], "alpha": views[1], "elevation": cameras.elevation,
        "azimuth": cameras.azimuth, "distance": cameras.distance, "fovy": cameras.fovy,
        "background": cameras.background, "meshes": meshes, "judge": judge,
    }  # fmt: skip
    return evaluate_views(**(arguments | changed))


@pytest.fixture(scope="module")
def report(views, judge_folder):
    ball = trimesh.creation.icosphere(radius=0.5)
    return evaluate(views, judge_folder, [ball, None, ball])


def test_the_truth_scores_full_marks(report):
    mushroom, duck, _ = report.prompts
    assert mushroom.iou == duck.iou == 1.0
    assert mushroom.color_error == duck.color_error == 0.0
    assert duck.front_back == 1.0
    assert mushroom.front_back is None  # has no front


def test_a_prompt_that_is_no_caption_has_clip_figures_only(report):
    other = report.prompts[2]
    assert math.isfinite(other.sim) and 0 <= other.r_at_1 <= 1
    assert other.iou is other.color_error is other.chamfer is other.chamfer_share is other.front_back is None


SHORT = ["a red mushroom", "a mushroom", "a blue duck", "a duck", "a yellow duck"]
SHOWN = ["a red mushroom with a white stem"] * 2 + ["a blue duck with an orange beak"] * 3


def test_a_short_caption_is_measured_against_the_nearest_object_that_it_allows(exact_views, judge_folder):
    report = evaluate(exact_views(SHOWN, VIEWS, SIZE), judge_folder, prompts=SHORT)
    for scores, shown in list(zip(report.prompts, SHOWN))[:4]:
        assert scores.measured_as == shown and scores.color_error == 0.0 and scores.iou == 1.0
    assert [s.front_back for s in report.prompts] == [None, None, 1.0, 1.0, 1.0]
    other = report.prompts[4]  # the duck that is shown is blue: right in its beak at most
    assert other.measured_as == "a yellow duck with an orange beak" and other.color_error > 0.1


def test_a_view_of_a_short_caption_is_found_by_any_full_caption_that_it_allows(exact_views, judge_folder, judge):
    pictures = exact_views(SHOWN, VIEWS, 64)  # the judge's own size
    full = [s.r_at_1_world for s in evaluate(pictures, judge_folder, prompts=SHOWN).prompts]
    assert full == clip_scores(judge, SHOWN, pictures[0].permute(0, 1, 4, 2, 3), world_gallery()).r_at_1
    assert max(full) > 0
    gallery = world_gallery()
    features = embed_images(judge, pictures[0].flatten(0, 1).permute(0, 3, 1, 2))
    found = [gallery[index] for index in (features @ embed_texts(judge, gallery).T).argmax(-1)]
    short = evaluate(pictures, judge_folder, prompts=SHORT).prompts
    for row, (text, scores) in enumerate(zip(SHORT, short)):
        allowed = [caption for caption in gallery if f"{text.removeprefix('a ')} with" in caption]
        assert len(allowed) in (9, 90)
        views = found[row * VIEWS : (row + 1) * VIEWS]
        assert scores.r_at_1_world == sum(caption in allowed for caption in views) / VIEWS


def test_nothing_to_compare_takes_the_first_object(views, judge_folder):
    background = evaluation_cameras(VIEWS).background
    empty = background.expand_as(views[0][:1]), torch.zeros_like(views[1][:1])
    (scores,) = evaluate(empty, judge_folder, prompts=["a blue duck"]).prompts
    assert scores.iou == 0 and math.isnan(scores.color_error) and scores.measured_as.startswith("a blue duck with")


def test_an_empty_mesh_is_infinite_and_counted_and_left_out_of_the_mean(report):
    mushroom, duck, _ = report.prompts
    assert duck.chamfer == math.inf and 0.02 < mushroom.chamfer < 0.3
    assert report.mean["chamfer"] == mushroom.chamfer
    assert report.empty_meshes == 1
    assert "1 empty mesh" in report.summary_line()


def test_without_meshes_there_is_no_chamfer(views, judge_folder):
    report = evaluate(views, judge_folder)
    assert all(scores.chamfer is None for scores in report.prompts)
    assert report.mean["chamfer"] is None and report.empty_meshes == 0
    assert "Chamfer" not in report.summary_line()


def test_means_are_over_the_prompts_that_have_the_figure(report):
    assert report.mean["front_back"] == 1.0
    assert report.mean["sim"] == pytest.approx(sum(s.sim for s in report.prompts) / 3)


def test_an_empty_field_has_no_overlap_and_no_colour(views, judge_folder, tmp_path):
    background = evaluation_cameras(VIEWS).background
    empty = background.expand_as(views[0]), torch.zeros_like(views[1])
    report = evaluate(empty, judge_folder)
    assert report.prompts[0].iou == 0 and math.isnan(report.prompts[0].color_error)
    assert report.mean["color_error"] is None
    report.save(tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text())["prompts"][0]["color_error"] is None


def test_saved_files_hold_the_figures(report, tmp_path):
    report.save(tmp_path / "new" / "folder")
    content = json.loads((tmp_path / "new" / "folder" / "evaluation.json").read_text())
    assert [entry["prompt"] for entry in content["prompts"]] == PROMPTS
    assert content["prompts"][1]["chamfer"] == "inf"
    assert content["mean"]["iou"] == 1.0 and content["gallery"] == PROMPTS and content["views"] == VIEWS
    table = (tmp_path / "new" / "folder" / "evaluation.md").read_text()
    assert table.count("\n| ") == 2 + len(PROMPTS) + 1
    assert "| a blue duck with an orange beak |" in table and "| inf |" in table


def test_one_report_twice_is_the_same(views, judge_folder, report):
    ball = trimesh.creation.icosphere(radius=0.5)
    assert evaluate(views, judge_folder, [ball, None, ball]) == report


def test_a_stated_gallery_is_kept(views, judge_folder):
    gallery = [*PROMPTS, "a green tree with a brown trunk"]
    assert evaluate(views, judge_folder, gallery=gallery).gallery == gallery


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"rgb": torch.rand(3, VIEWS, 8, 9, 3)}, "rgb must be"),
        ({"alpha": torch.rand(3, VIEWS, 8, 8)}, "alpha must be"),
        ({"azimuth": torch.zeros(3)}, "azimuth must be"),
        ({"background": torch.zeros(1, 3)}, "background must be"),
        ({"meshes": [None]}, "3 prompts, 1 meshes"),
        ({"prompts": PROMPTS[:2]}, "2 prompts"),
    ],
)
def test_wrong_shapes_are_named(views, judge_folder, changed, message):
    with pytest.raises(ValueError, match=message):
        evaluate(views, judge_folder, **changed)
