"""Every config that is shipped can be run: it passes --dry-run, with a tiny model in the big one's place."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from launch import main

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))

# What is set where a config has the key (a bare number stays as it is, a required one gets a value).
SMALL = {
    "data.height": 8,
    "data.width": 8,
    "data.eval_height": 8,
    "data.eval_width": 8,
    "system.geometry.text_dim": 16,
    "system.geometry.pos_encoding_config.log2_hashmap_size": 8,
    "system.judge": "null",
}
REQUIRED = {"system.prompt_processor.prompt": "a red car"}
MODEL_KEYS = ("system.prompt_processor", "system.guidance")


def overrides(config, tiny_model: Path) -> list[str]:
    given = []
    for key, value in SMALL.items():
        present = OmegaConf.select(config, key, throw_on_missing=False)
        if present is not None and not OmegaConf.is_config(present):
            given.append(f"{key}={value}")
    for part in MODEL_KEYS:
        node = OmegaConf.select(config, part)
        if node is not None and "pretrained_model_name_or_path" in node:
            given.append(f"{part}.pretrained_model_name_or_path={tiny_model}")
    for key, value in REQUIRED.items():
        part, name = key.rsplit(".", 1)
        node = OmegaConf.select(config, part)
        if node is not None and OmegaConf.is_missing(node, name):
            given.append(f"{key}={value}")
    return given


def test_there_are_configs():
    assert {"asd-3dconv.yaml", "dreamfusion-sd.yaml"} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=[str(p.relative_to(ROOT / "configs")) for p in CONFIGS])
def test_dry_run(path, tiny_sd_folder, text_cache, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)  # paths in configs are relative to the project
    output = tmp_path / "outputs"
    given = overrides(OmegaConf.load(path), tiny_sd_folder)
    assert main(["--config", str(path), "--dry-run", f"exp_root_dir={output}", *given]) == 0, capsys.readouterr().err
    resolved = OmegaConf.create(capsys.readouterr().out)
    assert resolved.name == OmegaConf.load(path).name
    assert not output.exists()


@pytest.mark.parametrize("path", CONFIGS, ids=[str(p.relative_to(ROOT / "configs")) for p in CONFIGS])
def test_files_that_configs_name_are_there(path):
    """Prompt libraries of this project; assets are named by their folder."""
    config = OmegaConf.load(path)
    library = OmegaConf.select(config, "data.prompt_library", throw_on_missing=False)
    if library and library.endswith(".json"):
        assert (ROOT / library).is_file()
    text = path.read_text()
    assert "\t" not in text and text.endswith("\n")
