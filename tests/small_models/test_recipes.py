"""Every recipe through its command: it writes a model that opens, and the same one again."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from turboprop.evaluation.clip_metrics import load_judge
from turboprop.novelview.image_encoders import ImageEncoder, read_encoder
from turboprop.novelview.teacher import NovelViewTeacher
from turboprop.small_models.__main__ import main
from turboprop.small_models.latent_pool import draw_sets
from turboprop.small_models.recipes import mini_dino, mini_mv, mini_novelview, mini_sd
from turboprop.small_models.sample_figures import exact_sets, nearest_azimuths, silhouettes
from turboprop.small_models.settings import pipeline_of
from turboprop.small_models.view_pairs import draw_objects
from turboprop.teachers import load_teacher
from turboprop.world.captions import held_out
from turboprop.world.dataset import build_view_bank, load_view_bank, save_view_bank
from turboprop.world.objects import KINDS
from turboprop.world.render import role_colors

MINI_SD = Path(__file__).resolve().parents[2] / "assets" / "teachers" / "mini-sd"


@pytest.fixture(scope="module")
def views(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("views") / "views.npz"
    save_view_bank(build_view_bank(4, 0, turns=4), path)
    return path


def train(model: str, output: Path, work: Path, views: Path, *more: object) -> int:
    options = ["--output", output, "--work", work, "--views", views, "--steps", 2, "--batch", 4, *more]
    return main([model, *(str(option) for option in options)])


def make_small(recipe, monkeypatch) -> None:
    """A pool and held-out figures that take seconds."""
    for name, value in {"POOL_SETS": 8, "FIGURE_STEPS": 2, "FIGURE_KINDS": ("chair", "duck")}.items():
        monkeypatch.setattr(recipe, name, value)


def test_the_judge_opens_and_repeats(views, tmp_path):
    weights = []
    for name in ("first", "second"):
        assert train("mini-clip", tmp_path / name, tmp_path / f"{name}-work", views) == 0
        weights.append(load_judge(tmp_path / name).model.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--batch", "3"], "--batch"), (["--output", __file__], "--output"), (["--views", __file__], "")],
)
def test_what_is_wrong_ends_the_command_in_one_line(options, said, views, tmp_path, capsys):
    assert train("mini-clip", tmp_path / "judge", tmp_path / "work", views, *options) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert not (tmp_path / "judge").exists()


def test_mini_mv_is_written_as_a_teacher_that_shares_mini_sds_parts(views, tmp_path, monkeypatch):
    (tmp_path / "mini-sd").symlink_to(MINI_SD)
    make_small(mini_mv, monkeypatch)
    assert train("mini-mv", tmp_path / "mini-mv", tmp_path / "work", views) == 0
    index = json.loads((tmp_path / "mini-mv" / "model_index.json").read_text())
    assert index["_shared_parts"]["vae"] == "../mini-sd" and not (tmp_path / "mini-mv" / "vae").exists()
    teacher = load_teacher(str(tmp_path / "mini-mv"))
    assert (teacher.image_size, teacher.latent_size, teacher.prediction_type) == (64, 16, "v_prediction")
    card = (tmp_path / "mini-mv" / "README.md").read_text()
    assert "2 steps of 4 pictures" in card and "| 2 |" in card
    assert (tmp_path / "work" / "samples-2.png").stat().st_size > 1_000


def test_mini_sd_is_written_as_stable_diffusion(views, tmp_path, monkeypatch):
    from diffusers import StableDiffusionPipeline

    make_small(mini_sd, monkeypatch)
    assert train("mini-vae", tmp_path / "model" / "vae", tmp_path / "vae-work", views) == 0
    assert train("mini-sd", tmp_path / "model", tmp_path / "work", views) == 0
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a red chair", num_inference_steps=2).images[0].size == (64, 64)
    assert "view_seen" in (tmp_path / "model" / "README.md").read_text()


def test_mini_dino_opens_as_an_encoder_and_is_no_collapse(views, tmp_path, monkeypatch):
    for name, value in {"FIGURE_OBJECTS": 4, "PROTOTYPES": 16}.items():
        monkeypatch.setattr(mini_dino, name, value)
    assert train("mini-dino", tmp_path / "encoder", tmp_path / "work", views) == 0
    encoder = read_encoder(tmp_path / "encoder")
    encoded = encoder(torch.rand(2, 3, 64, 64) * 2 - 1, [0, 5])
    assert encoded.patches.shape == (2, 64, 96) and encoded.levels[1].shape == (2, 96, 8, 8)
    card = (tmp_path / "encoder" / "README.md").read_text()
    assert "azimuth_patches" in card and "2 steps of 4 pictures" in card


def test_neighbours_tell_kind_and_azimuth_where_the_pictures_are_known(views):
    objects = draw_objects(load_view_bank(views), 17, 4, torch.Generator().manual_seed(0))
    encoder = ImageEncoder(mini_dino.make_encoder())
    figures = mini_dino.neighbour_figures(encoder, objects, objects, torch.device("cpu"))
    assert figures["kind_patches"] == 1 and figures["azimuth_patches"] == 0
    assert figures["rank"] > 1.5


def test_mini_novelview_shares_its_encoders_and_draws(views, tmp_path, monkeypatch):
    monkeypatch.setattr(mini_novelview, "POOL_OBJECTS", 8)
    monkeypatch.setattr(mini_novelview, "FIGURES", mini_novelview.FigurePlan(objects=2, views=2, sampling_steps=2))
    (tmp_path / "teachers").mkdir()
    (tmp_path / "teachers" / "mini-sd").symlink_to(MINI_SD)
    encoder = mini_dino.make_encoder()
    mini_dino.save_encoder(tmp_path / "encoders" / "mini-dino", encoder)
    folder = tmp_path / "novelview" / "mini-novelview"
    assert train("mini-novelview", folder, tmp_path / "work", views) == 0
    assert not (folder / "vae").exists() and not (folder / "image_encoder").exists()
    assert (tmp_path / "work" / "samples-2.png").stat().st_size > 1_000
    assert "psnr_held_out" in (folder / "README.md").read_text()
    teacher = NovelViewTeacher.from_pretrained(str(folder))
    assert (teacher.image_size, teacher.model.prediction_type) == (64, "v_prediction")
    trained = load_file(folder / "conditioning" / "diffusion_pytorch_model.safetensors")
    assert float(trained["injection.projections.0.weight"].abs().max()) > 0  # it started at zero


@torch.no_grad()
def test_mini_novelview_begins_as_mini_sd():
    base = pipeline_of(MINI_SD, torch.device("cpu")).unet
    unet = mini_novelview.starting_unet(base)
    noisy, timesteps, tokens = torch.randn(2, 4, 16, 16), torch.tensor([900, 3]), torch.randn(2, 5, 128)
    widened = torch.cat([noisy, torch.randn(2, 4, 16, 16)], 1)
    theirs = base(noisy, timesteps, tokens).sample
    torch.testing.assert_close(unet(widened, timesteps, tokens).sample, theirs, atol=1e-4, rtol=1e-4)
    assert all(p.requires_grad for p in unet.parameters()) and not any(p.requires_grad for p in base.parameters())
    assert base.config.in_channels == 4


def test_pairs_are_two_views_of_one_object(views):
    bank = load_view_bank(views)
    objects = draw_objects(bank, 34, 3, torch.Generator().manual_seed(0), held_out_only=True)
    assert [spec.kind for spec in objects.specs[:17]] == list(KINDS)
    assert all(held_out(spec.kind, spec.main) for spec in objects.specs)
    assert (objects.cameras[:, 0] != objects.cameras[:, 1]).any(-1).all()
    outside = objects.coverage[:, :, None] == 0
    assert bool((objects.images[outside.expand_as(objects.images)] == 1).all())  # white where nothing is


def test_mini_sd_says_that_it_needs_an_autoencoder(views, tmp_path, capsys):
    assert train("mini-sd", tmp_path / "model", tmp_path / "work", views) == 1
    assert "mini-vae" in capsys.readouterr().err


def test_sets_are_of_one_object_and_leave_held_out_pairs_alone(views):
    bank = load_view_bank(views)
    for only_held_out in (False, True):
        sets = draw_sets(bank, 40, torch.Generator().manual_seed(0), only_held_out)
        assert all(held_out(spec.kind, spec.main) == only_held_out for spec in sets.specs)
        turn = torch.remainder(sets.azimuth.diff(dim=1), 360.0)
        assert torch.allclose(turn, torch.full_like(turn, 90.0), atol=1e-3)
        assert torch.equal(sets.elevation, sets.elevation[:, :1].expand(-1, 4))
        corner = sets.images[:, :, :, 0, 0]  # one background a set
        assert torch.allclose(corner, corner[:, :1].expand_as(corner))


def test_figures_know_exact_pictures():
    exact = exact_sets(1, 4, held_out_only=False, seed=3, kinds=("chair", "duck", "car", "tree"))
    images, specs = exact.images.flatten(0, 1), [spec for spec in exact.specs for _ in range(4)]
    colors = torch.stack([role_colors(spec.main, spec.accent) for spec in specs])
    found, truth = silhouettes(images, colors), exact.coverage.flatten(0, 1) > 0.5
    iou = (found.bool() & truth).sum((1, 2)) / (found.bool() | truth).sum((1, 2))
    assert float(iou.mean()) > 0.93
    front = [i for i, spec in enumerate(specs) if spec.shape.has_front][:12]
    turned = nearest_azimuths(images[front], [specs[i] for i in front]) - exact.azimuth[front]
    assert float((torch.remainder(turned + 180, 360) - 180).abs().median()) <= 15
