"""configs/asd-paint.yaml: a mesh of one's own gets its colours from a prompt, and keeps its shape."""

import json

import numpy as np
import pytest
import torch
import trimesh

from launch import main
from tests.host.launches import ROOT

SMALL = [
    "system.prompt_processor.prompt=a green chair with red legs", "trainer.max_steps=2", "trainer.val_check_interval=2",
    "data.width=16", "data.height=16", "data.eval_width=16", "data.eval_height=16", "data.n_test_views=2",
    "data.n_val_views=1", "system.exporter.texture_size=64", "tag=t", "use_timestamp=false",
]  # fmt: skip


@pytest.fixture()
def box(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shape = trimesh.creation.box((0.8, 0.6, 1.0))
    shape.export("box.obj")
    return shape


def paint(*options: str) -> int:
    return main(["--config", str(ROOT / "configs/asd-paint.yaml"), "--train", *SMALL, *options])


def test_a_painted_mesh_keeps_its_shape(box, text_cache, tmp_path):
    assert paint("system.geometry.shape_init=mesh:box.obj") == 0
    save = tmp_path / "outputs/asd-paint/t/save"
    painted = trimesh.load(save / "it2-export/model.glb", force="mesh", process=False)
    world = painted.vertices[:, [2, 0, 1]]
    for corner in box.vertices:
        assert np.abs(world - corner).max(-1).min() < 1e-5
    assert len(painted.faces) == len(box.faces) and painted.visual.material.baseColorTexture is not None
    assert json.loads((save / "it2-evaluation/evaluation.json").read_text())["prompts"][0]["iou"] > 0
    weights = torch.load(tmp_path / "outputs/asd-paint/t/ckpts/last.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(weights["geometry.v_buffer"].amax(0), torch.tensor([0.4, 0.3, 0.5]))


def test_a_mesh_that_is_not_there_is_one_line(box, text_cache, tmp_path, capsys):
    assert paint("system.geometry.shape_init=mesh:none.obj") == 2
    assert "geometry.shape_init: mesh file not found: none.obj" in capsys.readouterr().err
    assert paint() == 2
    assert "system.geometry.shape_init" in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_the_benchmarks_table_has_a_dash_for_what_no_object_has(monkeypatch):
    """A mushroom has no front; of --objects 1 it is the only one."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # as `python benchmarks/paint.py` has it
    from benchmarks import paint as benchmark

    figures = {"r_at_1_world": 1.0, "iou": 0.9, "color_error": 0.02, "front_back": None, "sim": 0.3}
    runs = [{"material": "plain", "seed": seed, "text": "a red mushroom", "cpu_seconds": 60.0, "evaluation": figures}
            for seed in (0, 1)]  # fmt: skip
    (row,) = [line for line in benchmark.paint_table(runs) if "mushroom" in line]
    assert [cell.strip() for cell in row.split("|")][6:8] == ["-", "0.300 (0.300 to 0.300)"]
