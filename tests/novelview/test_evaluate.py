"""The evaluation command and its measures; the world rendered into zero-1-to-3's layout."""

import html
import json
import math
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from turboprop.evaluation.picture_metrics import psnr_of_each, structural_similarity_of_each
from turboprop.fitting.posed_views import world_views
from turboprop.novelview import evaluate, render_world
from turboprop.novelview.picture_quality import QualityMeter, perceptual_distance
from turboprop.novelview.renders import open_index, read_camera, read_render, view_numbers
from turboprop.world.cameras import orbit_c2w
from turboprop.world.captions import ObjectSpec, held_out
from turboprop.world.dataset import FOVY_DEG, IMAGE_SIZE, ViewBank, save_view_bank
from turboprop.world.objects import KINDS
from turboprop.world.render import shaded_coverage, surface_view

pytestmark = pytest.mark.usefixtures("text_cache")


def test_measures_of_known_pictures():
    truth = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.5
    psnr = psnr_of_each(torch.stack([truth[0], truth[1] + 0.1, truth[2] + 0.01]), truth)
    torch.testing.assert_close(psnr, torch.tensor([100.0, 20.0, 40.0]).to(psnr))
    ssim = structural_similarity_of_each(torch.stack([truth[0], truth[1] + 0.1, truth[1]]), truth)
    assert float(ssim[0]) == pytest.approx(1.0) and 1 > float(ssim[1]) > float(ssim[2])
    with pytest.raises(ValueError, match=r"SSIM: expected pictures of at least 11 pixels, got \[8, 8\]"):
        structural_similarity_of_each(truth[:, :, :8, :8], truth[:, :, :8, :8])


def test_lpips_is_left_out_with_a_reason_or_says_how():
    distance, how = perceptual_distance("vgg", torch.device("cpu"))
    assert how.startswith("not computed: ") if distance is None else "vgg" in how
    with pytest.raises(ValueError, match="lpips: expected one of vgg, alex, squeeze, got 'resnet'"):
        perceptual_distance("resnet", torch.device("cpu"))


def test_missing_packages_are_named_with_what_to_install(monkeypatch):
    for package in ("lpips", "torchvision"):
        monkeypatch.setitem(sys.modules, package, None)
    distance, how = perceptual_distance("squeeze", torch.device("cpu"))
    assert distance is None and "lpips" in how and how.endswith("pip install lpips torchvision")


@pytest.mark.parametrize("package", ["lpips", "torchmetrics"])
def test_lpips_of_the_real_networks_at_random_weights(package, tmp_path, monkeypatch):
    """The weights lie where torchvision looks for downloaded ones: the smallest backbone's, drawn at random."""
    pytest.importorskip("lpips")
    torchvision = pytest.importorskip("torchvision")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = tmp_path / "hub" / "checkpoints" / Path(torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url).name
    weights.parent.mkdir(parents=True)
    torch.save(torchvision.models.squeezenet1_1().state_dict(), weights)
    if package == "torchmetrics":
        monkeypatch.setitem(sys.modules, "lpips", None)
    meter = QualityMeter("squeeze", torch.device("cpu"))
    picture, other = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).unbind(0)
    meter.add(picture, torch.stack([picture[0], other[1]]))
    assert meter.report()["how"]["lpips"].startswith(package) and "squeeze" in meter.lines()[0]
    same, different = (row["lpips"] for row in meter.rows)
    assert same == pytest.approx(0.0, abs=1e-6) and different > 1e-4


@pytest.fixture()
def command(tiny_renders, tiny_zero123_folder, tmp_path):
    def run(*more: str, data=tiny_renders, output="results") -> dict | int:
        arguments = ["--model", str(tiny_zero123_folder), "--data", str(data), "--steps", "2"]
        arguments += ["--output", str(tmp_path / output)]
        code = evaluate.main([*arguments, *more])
        return code or json.loads((tmp_path / output / "evaluation.json").read_text())

    return run


def test_the_command_measures_every_view_and_shows_it(command, tiny_renders, tmp_path):
    report = command()
    assert report["views"] == 12 and report["objects"] == 6 and report["left_out"] == []
    assert list(report["each"])[:3] == ["object-0/001", "object-0/002", "object-1/001"]
    mean = sum(row["psnr"] for row in report["each"].values()) / 12
    assert report["mean"]["psnr"] == pytest.approx(mean) and "lpips" in report["how"]
    output = tmp_path / "results"
    page = (output / "index.html").read_text()
    sources = [piece.split('"')[0] for piece in page.split('src="')[1:]]
    assert len(sources) == 18 and all((output / source).is_file() for source in sources)
    side_by_side = read_pixels(output / "pictures" / "object-0-001.png")
    assert side_by_side.shape == (16, 32, 3)
    truth = ((read_render(tiny_renders / "object-0" / "001.png", 16) / 2 + 0.5) * 255).round().permute(1, 2, 0)
    assert np.array_equal(side_by_side[:, :16], truth.numpy().astype(np.uint8))
    squared = ((side_by_side[:, 16:].astype(float) - side_by_side[:, :16]) / 255) ** 2
    assert report["each"]["object-0/001"]["psnr"] == pytest.approx(-10 * math.log10(squared.mean()), abs=0.05)


def read_pixels(path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(path))


def test_a_views_result_does_not_depend_on_what_else_is_measured(command, monkeypatch):
    whole = command()
    monkeypatch.setattr(evaluate.drawn_views, "__defaults__", (1,))  # batch size
    part = command("--objects", "2", "--views", "1", output="part")
    assert part["views"] == 2
    for name, row in part["each"].items():
        assert row["psnr"] == pytest.approx(whole["each"][name]["psnr"], abs=1e-3)
    assert command("--seed", "1", output="other")["each"] != whole["each"]


def test_objects_that_cannot_be_measured_are_named(command, tiny_renders, tmp_path, capsys):
    root = shutil.copytree(tiny_renders, tmp_path / "renders")
    shutil.rmtree(root / "object-3")
    (root / "object-4" / "000.png").unlink()
    report = command(data=root)
    assert report["objects"] == 4 and len(report["left_out"]) == 2 and "object-3" in report["left_out"][0]
    capsys.readouterr()
    assert command("--input-view", "7", data=root) == 2
    assert "expected view 7 and another one, found views [0, 1, 2]" in capsys.readouterr().err
    assert command(data=tmp_path / "nowhere") == 2
    assert capsys.readouterr().err.startswith("error: --data: no folder")
    assert command("--model", "nowhere.ckpt") == 2
    assert capsys.readouterr().err.startswith("error: --model: no checkpoint nowhere.ckpt")


def test_the_page_finds_pictures_of_any_name(command, tiny_renders, tmp_path):
    name = "a #1 <50%> \N{LATIN SMALL LETTER U WITH DIAERESIS}?"
    shutil.copytree(tiny_renders / "object-0", tmp_path / "renders" / name)
    command(data=tmp_path / "renders")
    page = (tmp_path / "results" / "index.html").read_text()
    sources = [html.unescape(piece.split('"')[0]) for piece in page.split('src="')[1:]]
    assert len(sources) == 3
    for source in sources:
        assert "#" not in source and "?" not in source and (tmp_path / "results" / unquote(source)).is_file()
    lines = (tmp_path / "results" / "evaluation.md").read_text()
    assert "2 DDIM steps, guidance scale 3, eta 1, seed 0; background white" in lines


# ------------------------------------------------------------------------------- the world's renders


@pytest.fixture(scope="module")
def bank() -> ViewBank:
    """Two exact views of the first kind; the other kinds' are the same pictures, which no test looks at."""
    elevation, azimuth, distance = torch.tensor([10.0, 40.0]), torch.tensor([20.0, -130.0]), torch.tensor([2.6, 2.8])
    fovy = torch.full((2,), math.radians(FOVY_DEG))
    kind, c2w = next(iter(KINDS.values())), orbit_c2w(elevation, azimuth, distance)
    surface = surface_view(kind, c2w, fovy, 2 * IMAGE_SIZE, 2 * IMAGE_SIZE)
    layers = (shaded_coverage(surface, 2) * 255).round().to(torch.uint8)
    count = len(KINDS)
    cameras = (values.expand(count, -1).contiguous() for values in (elevation, azimuth, distance))
    return ViewBank(layers.expand(count, -1, -1, -1, -1).contiguous(), *cameras)


def test_a_written_object_is_the_worlds(bank, tmp_path):
    spec = ObjectSpec(next(iter(KINDS)), "red", "blue")
    render_world.render_world(tmp_path, [spec], bank, 2, seed=0)
    index = open_index(tmp_path)
    folder = index.folder(0)
    assert len(index) == 1 and view_numbers(folder) == [0, 1]
    for view in (0, 1):
        elevation, azimuth, distance = read_camera(folder / f"{view:03d}.npy")
        c2w = orbit_c2w(elevation[None], azimuth[None], distance[None])
        exact = world_views(spec, c2w, math.radians(FOVY_DEG), IMAGE_SIZE)
        truth = exact.on(torch.ones(1, 3))[0].permute(2, 0, 1)
        read = read_render(folder / f"{view:03d}.png", IMAGE_SIZE) / 2 + 0.5
        assert float((read - truth).abs().mean()) < 0.01  # but for antialiasing at edges
    about = json.loads((tmp_path / "world.json").read_text())
    assert about["fovy_deg"] == FOVY_DEG and list(about["captions"].values())[0].startswith("a red ")


def test_the_command_renders_held_out_objects_apart(bank, tmp_path, capsys):
    save_view_bank(bank, tmp_path / "bank.npz")
    common = ["--bank", str(tmp_path / "bank.npz"), "--objects", "5", "--views", "2"]
    for choice in ("none", "only"):
        assert render_world.main([*common, "--output", str(tmp_path / choice), "--held-out", choice]) == 0
        names = json.loads((tmp_path / choice / "valid_paths.json").read_text())
        assert len(names) == 5
        for name in names:
            main_color, kind, _ = name.split("-")
            assert held_out(kind, main_color) == (choice == "only")
    assert render_world.main([*common, "--output", str(tmp_path / "x"), "--views", "3"]) == 2
    assert "--views: expected 1 to 2, the traced views of each kind; got 3" in capsys.readouterr().err
