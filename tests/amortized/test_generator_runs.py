"""Whole small runs of the main job with the other two generators: resumed, by Picard iterations, with VSD, exported."""

from pathlib import Path

import pytest
import trimesh

from launch import main
from tests.main_job import ROOT, SMALL, TEXT_DIM, library, model, state_of
from tests.saved_states import assert_same

GEOMETRY = {
    "asd-hyper-ingp": [
        "pos_encoding_config.n_levels=2", "pos_encoding_config.log2_hashmap_size=8", "hyper_dim=8", "hidden_dim=8",
        "lattice_resolution=8",
    ],
    "asd-triplane": ["inner_dim=12", "num_layers=1", "num_heads=3", "triplane_low_res=4", "triplane_dim=4"],
}  # fmt: skip


@pytest.fixture(params=GEOMETRY)
def train(request, tmp_path, monkeypatch, tiny_sd_folder, text_cache):
    """Runs a tiny job of one generator; gives the trial's folder."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    small = [key for key in SMALL if not key.startswith("system.geometry.")]
    small += [f"system.geometry.{key}" for key in (*GEOMETRY[request.param], f"text_dim={TEXT_DIM}")]
    small += [library(tmp_path), model(tiny_sd_folder), "trainer.val_check_interval=null"]
    config = str(ROOT / "configs" / f"{request.param}.yaml")

    def run(out: str, *more: str, mode: str = "--train") -> Path:
        assert main(["--config", config, mode, *small, f"exp_root_dir={out}", "tag=t", *more]) == 0
        return Path(out, request.param, "t")

    return run


def test_stopped_and_resumed_by_picard_and_with_vsd(train):
    untested = "trainer.limit_test_batches=0"
    whole = train("whole")
    first = f"resume={whole}/ckpts/epoch=0-step=1.ckpt"
    assert_same(state_of(train("part", untested, first) / "ckpts/last.ckpt"), state_of(whole / "ckpts/last.ckpt"))

    picard = [
        "system_type=turboprop-multiprompt-generator-system:picard",
        "system.picard.window=2",
        "system.picard.threshold=0",
    ]
    window = state_of(train("picard", untested, *picard) / "ckpts/last.ckpt")
    assert_same(window["state_dict"], state_of(whole / "ckpts/last.ckpt")["state_dict"])

    learned = state_of(train("vsd", untested, "system.guidance_type=turboprop-vsd-guidance") / "ckpts/last.ckpt")
    adapters = [value for key, value in learned["state_dict"].items() if key.endswith("lora_B")]
    assert adapters and all(value.abs().max() > 0 for value in adapters)


def test_each_prompt_is_exported(train):
    trial = train("run", "trainer.limit_test_batches=0")
    train("run", f"resume={trial}/ckpts/last.ckpt", mode="--export")
    meshes = list((trial / "save").glob("it3-export/*/model.glb"))
    assert len(meshes) == 3 and all(len(trimesh.load(path, force="mesh").faces) > 0 for path in meshes)
