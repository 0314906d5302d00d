"""Folders of renders: what is read, what is refused, which pairs are drawn; the latent cache."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from turboprop.novelview import latent_cache
from turboprop.novelview.cached_latents import open_latent_cache
from turboprop.novelview.data import FixedPairs, KeyedBatches, NovelViewDataModule, ViewPairs
from turboprop.novelview.latent_cache import create_latent_cache, fill_latent_cache
from turboprop.novelview.renders import (
    BrokenFolder,
    evaluation_folders,
    open_index,
    read_camera,
    read_render,
    split_of,
    view_numbers,
)

from ..tiny_novelview import tiny_vae

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = np.array([{}] * 12).reshape(3, 4)


def save_archive(path):
    with open(path, "wb") as file:  # np.savez would add an ending
        np.savez(file, np.eye(4)[:3])


pytestmark = pytest.mark.usefixtures("text_cache")


@pytest.fixture()
def root(tiny_renders, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(tiny_renders, tmp_path / "renders")


def test_the_index_holds_the_names_and_follows_their_file(root):
    index = open_index(root)
    assert len(index) == 6 and index.folder(4) == root / "object-4"
    assert isinstance(index.names, np.memmap)
    before = index.fingerprint()
    (root / "valid_paths.json").write_text(json.dumps(["object-2", "object-5"]))
    index = open_index(root)
    assert [index.folder(n).name for n in range(len(index))] == ["object-2", "object-5"]
    assert index.fingerprint() != before
    (root / "valid_paths.json").unlink()
    assert len(open_index(root)) == 6


def test_roots_that_cannot_be_used(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="data.root: no folder .*nowhere"):
        open_index(tmp_path / "nowhere")
    for content, message in (
        ("[", "not valid JSON"),
        ("{}", "expected a list of folder names"),
        ("[]", "expected a list of folder names"),
        ('["a", "../b"]', "'../b' is not a folder inside"),
    ):
        (root / "valid_paths.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            open_index(root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither folders of renders nor valid_paths.json"):
        open_index(tmp_path / "empty")


def test_the_split_is_the_last_percent():
    assert split_of(800_000, 0.01) == (range(792_000), range(792_000, 800_000))
    assert split_of(10, 0.01) == (range(9), range(9, 10))
    assert split_of(1, 0.01) == (range(1), range(1, 1))
    assert split_of(10, 0.0) == (range(10), range(10, 10))


def test_pictures_are_over_white_and_antialiased(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4] = [255, 0, 0, 255]
    pixels[:, 4:6] = [0, 0, 255, 128]
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    picture = (read_render(tmp_path / "a.png", 8) + 1) / 2
    assert picture.shape == (3, 8, 8)
    torch.testing.assert_close(picture[:, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(picture[:, 0, 4], torch.tensor([127 / 255, 127 / 255, 1.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(picture[:, 0, 7], torch.ones(3))
    small = read_render(tmp_path / "a.png", 2)
    torch.testing.assert_close(small.mean(), (picture * 2 - 1).mean(), atol=0.05, rtol=0)


def test_pairs_are_two_views_of_one_object_and_a_function_of_the_key(root):
    pairs = ViewPairs(open_index(root), range(5), 16)
    item = pairs[123]
    found = []
    for number in range(5):
        folder = root / f"object-{number}"
        for view in view_numbers(folder):
            picture = read_render(folder / f"{view:03d}.png", 16)
            for key in ("input", "target"):
                if torch.equal(picture, item[f"{key}_image"]):
                    assert torch.equal(read_camera(folder / f"{view:03d}.npy"), item[f"{key}_camera"])
                    found.append((key, number, view))
    (one, two) = sorted(found)
    assert (one[0], two[0]) == ("input", "target") and one[1] == two[1] and one[2] != two[2]
    again = pairs[123]
    assert all(torch.equal(torch.as_tensor(item[key]), torch.as_tensor(again[key])) for key in item)
    drawn = {tuple(pairs[key]["input_camera"].tolist()) for key in range(200)}
    assert len(drawn) == 15  # every view of every object but the last, which is held out


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: shutil.rmtree(folder),
        lambda folder: [path.unlink() for path in folder.glob("*.npy")],
        lambda folder: [path.write_bytes(path.read_bytes()[:60]) for path in folder.glob("*.png")],
        lambda folder: [path.write_bytes(b"") for path in folder.glob("*.png")],
        lambda folder: [np.save(path, np.eye(4)) for path in folder.glob("*.npy")],
        lambda folder: [np.save(path, np.full((3, 4), np.nan)) for path in folder.glob("*.npy")],
        lambda folder: [np.save(path, np.ones((3, 4))) for path in folder.glob("*.npy")],
        lambda folder: [np.save(path, OBJECTS, allow_pickle=True) for path in folder.glob("*.npy")],
        lambda folder: [save_archive(path) for path in folder.glob("*.npy")],
        lambda folder: [Image.new("RGBA", (16, 8)).save(path) for path in folder.glob("*.png")],
    ],
    ids=[
        "gone",
        "no cameras",
        "cut pictures",
        "empty pictures",
        "4x4",
        "nan",
        "no rotation",
        "objects",
        "archives",
        "not square",
    ],
)
def test_broken_folders_are_counted_and_left_out(root, damage):
    for number in (0, 2, 3):
        damage(root / f"object-{number}")
    pairs = ViewPairs(open_index(root), range(4), 16)
    items = [pairs[key] for key in range(40)]
    assert sum(item["broken"] for item in items) > 60  # three in four draws
    assert len({tuple(item["input_camera"].tolist()) for item in items}) == 3
    damage(root / "object-1")
    with pytest.raises(ValueError, match="100 folders in a row of .* cannot be used, the last one: .*object-"):
        pairs[0]


def test_batches_go_on_where_a_run_stopped():
    def batches(start, rank=0):
        return iter(KeyedBatches(4, seed=7, rank=rank, start=lambda: start))

    whole, later = batches(0), batches(3)
    keys = [next(whole) for _ in range(5)]
    assert [next(later), next(later)] == keys[3:]
    assert len({key for batch in keys for key in batch}) == 20
    assert next(batches(0, rank=1)) != keys[0]


def test_workers_read_the_same_pairs(root):
    from torch.utils.data import DataLoader

    pairs = ViewPairs(open_index(root), range(5), 16)
    first = []
    for workers in (0, 2):
        sampler = KeyedBatches(3, 1, 0, lambda: 2)
        first.append(next(iter(DataLoader(pairs, batch_sampler=sampler, num_workers=workers))))
    assert all(torch.equal(first[0][key], first[1][key]) for key in first[0])


def test_validation_pairs_are_of_held_out_objects_and_always_the_same(root):
    module = NovelViewDataModule({"root": str(root), "image_size": 16, "validation_pairs": 5, "validation_share": 0.2})
    module.setup("fit")
    assert isinstance(module.validation_pairs, FixedPairs)
    batches = list(module.val_dataloader())
    assert sum(len(batch["input_image"]) for batch in batches) == 5
    again = list(module.test_dataloader())
    assert torch.equal(batches[0]["target_image"], again[0]["target_image"])
    own = {tuple(read_camera(path).tolist()) for path in (root / "object-5").glob("*.npy")}
    assert {tuple(camera.tolist()) for camera in batches[0]["input_camera"]} <= own


def test_a_root_without_usable_folders_is_refused_at_once(root):
    for path in root.glob("object-5/*.npy"):
        path.unlink()
    module = NovelViewDataModule({"root": str(root), "image_size": 16, "validation_share": 0.2})
    with pytest.raises(ValueError, match="100 folders in a row .*object-5: expected two views or more"):
        module.setup("fit")


@pytest.mark.parametrize(
    "key,value",
    [("root", ""), ("image_size", 0), ("num_workers", -1), ("validation_share", 1.0), ("validation_share", 0.0)],
)
def test_impossible_keys_are_named(tiny_renders, key, value):
    with pytest.raises(ValueError, match=f"data.{key}: expected"):
        NovelViewDataModule({"root": str(tiny_renders), key: value})


def test_evaluation_folders_of_both_layouts(root, tmp_path):
    assert [folder.name for folder in evaluation_folders(root)][:2] == ["object-0", "object-1"]
    gso = tmp_path / "gso"
    for name in ("mario", "alarm"):
        shutil.copytree(root / "object-1", gso / name / "render_mvs_25" / "model")
    found = evaluation_folders(gso)
    assert [folder.parent.parent.name for folder in found] == ["alarm", "mario"]
    assert view_numbers(found[0]) == [0, 1, 2]


# ------------------------------------------------------------------------------------ latent cache


@pytest.fixture()
def vae():
    torch.manual_seed(0)
    return tiny_vae().eval()


@torch.no_grad()
def test_cached_moments_are_the_autoencoders(root, tmp_path, vae):
    index = open_index(root)
    cache = create_latent_cache(tmp_path / "cache", index, 3, (4, 8, 8), vae)
    assert fill_latent_cache(cache, index, vae, 16, range(6), print) == (18, 0)
    opened = open_latent_cache(tmp_path / "cache", index)
    posterior = vae.encode(read_render(root / "object-3" / "001.png", 16)[None]).latent_dist
    expected = torch.cat([posterior.mean, posterior.std])
    torch.testing.assert_close(opened.read(3, 1), expected, atol=2e-3, rtol=2e-3)  # kept in float16
    item = ViewPairs(index, range(6), 16, opened)[5]
    assert "target_image" not in item and item["target_moments"].shape == (2, 4, 8, 8)
    plain = ViewPairs(index, range(6), 16)[5]
    expected = vae.encode(plain["target_image"][None]).latent_dist.mean[0]
    torch.testing.assert_close(item["target_moments"][0], expected, atol=2e-3, rtol=2e-3)


def test_a_cache_goes_on_and_knows_what_it_lacks(root, tmp_path, vae):
    index = open_index(root)
    shutil.rmtree(root / "object-2")
    cache = create_latent_cache(tmp_path / "cache", index, 2, (4, 8, 8), vae)
    assert fill_latent_cache(cache, index, vae, 16, range(3), print) == (4, 1)
    cache = create_latent_cache(tmp_path / "cache", index, 2, (4, 8, 8), vae)  # the same command again
    assert fill_latent_cache(cache, index, vae, 16, range(6), print) == (6, 1)
    opened = open_latent_cache(tmp_path / "cache", index)
    for folder, view in ((2, 0), (0, 2)):
        with pytest.raises(BrokenFolder, match=f"no view {view} of folder {folder}"):
            opened.read(folder, view)


def test_a_cache_of_something_else_is_refused(root, tmp_path, vae):
    index = open_index(root)
    create_latent_cache(tmp_path / "cache", index, 2, (4, 8, 8), vae)
    with pytest.raises(ValueError, match="has another shape"):
        create_latent_cache(tmp_path / "cache", index, 3, (4, 8, 8), vae)
    with pytest.raises(ValueError, match="has another autoencoder"):
        create_latent_cache(tmp_path / "cache", index, 2, (4, 8, 8), tiny_vae())
    (root / "valid_paths.json").write_text('["object-1"]')
    with pytest.raises(ValueError, match="made of other folders"):
        open_latent_cache(tmp_path / "cache", open_index(root))
    with pytest.raises(FileNotFoundError, match="data.latent_cache: no latent cache in"):
        open_latent_cache(tmp_path / "none", index)


def test_the_cache_command(root, tmp_path, tiny_zero123_folder, capsys):
    arguments = ["--root", str(root), "--model", str(tiny_zero123_folder)]
    arguments += ["--output", str(tmp_path / "cache"), "--views", "3"]
    assert latent_cache.main([*arguments, "--part", "1/2"]) == 0
    assert latent_cache.main([*arguments, "--part", "2/2"]) == 0
    assert "9 views encoded, 0 of 3 folders left out" in capsys.readouterr().out
    assert open_latent_cache(tmp_path / "cache", open_index(root)).present.all()
    assert latent_cache.main(["--root", "nowhere", "--model", "x", "--output", "y"]) == 2
    assert capsys.readouterr().err == "error: --root: no folder nowhere\n"
    capsys.readouterr()
    assert latent_cache.main([*arguments[:2], "--model", "nowhere/a/b", *arguments[4:]]) == 2
    assert capsys.readouterr().err.startswith("error: --model: no folder nowhere/a/b")


def test_commands_are_not_imported_before_they_run():
    """Python warns of unpredictable behaviour where `-m` runs a module that its package has imported."""
    commands = [f"custom.turboprop.novelview.{name}" for name in ("latent_cache", "evaluate", "render_world")]
    code = f"import sys, custom.turboprop; print([name for name in {commands} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
