"""Coarse stages and their refinement through the command line, at tiny sizes."""

import shutil

import pytest
import torch
import trimesh

from tests.host.launches import PLUGINS
from threestudio.models.geometry import shape_fit

CONFIG = str(PLUGINS / "silhouette.yaml")
COARSE = "outputs/coarse/trial/ckpts/last.ckpt"
SDF = [
    "name=sdf", "system.geometry_type=implicit-sdf", "system.geometry.isosurface_threshold=0.0",
    "system.geometry.shape_init=sphere", "system.geometry.shape_init_params=0.6",
    "system.renderer_type=neus-volume-renderer", "system.geometry.normal_type=analytic",
]  # fmt: skip
GRID = [
    "name=refine", "system.geometry_type=tetrahedra-sdf-grid", "~system.geometry.isosurface_threshold",
    "system.renderer_type=nvdiff-rasterizer", "~system.renderer.num_samples_per_ray",
]  # fmt: skip


@pytest.fixture()
def launch(launch_here, tmp_path):
    """Runs the tiny config with overrides; `~key` takes a key out."""
    from omegaconf import OmegaConf

    def run(mode, *overrides):
        config = OmegaConf.load(CONFIG)
        for key in (o[1:] for o in overrides if o.startswith("~")):
            parent, _, name = key.rpartition(".")
            del OmegaConf.select(config, parent)[name]
        path = tmp_path / "config.yaml"
        OmegaConf.save(config, path)
        return launch_here(mode, *[o for o in overrides if not o.startswith("~")], config=str(path))

    return run


def state(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_volume_to_grid_to_fixed_grid(launch, tmp_path):
    assert launch("--train") == 0
    refine = [*GRID, "system.geometry_convert_inherit_texture=true"]
    assert launch("--train", *refine, f"system.geometry_convert_from={COARSE}") == 0
    refined = tmp_path / "outputs/refine/trial/ckpts/last.ckpt"
    weights, coarse = state(refined), state(tmp_path / COARSE)
    assert weights["geometry.isosurface_bbox"].abs().max() < 1 and (weights["geometry.sdf"] < 0).any()
    # The texture started from the coarse one and moved by two steps of Adam.
    moved = (
        (weights["geometry.feature_network.layers.0.weight"] - coarse["geometry.feature_network.layers.0.weight"])
        .abs()
        .max()
    )
    assert 0 < moved < 0.05
    # The third stage keeps the shape; LAST finds the second.
    fixed = [
        "name=texture",
        "system.geometry.fix_geometry=true",
        "system.geometry_convert_from=outputs/refine/triLAST/ckpts/last.ckpt",
    ]
    assert launch("--train", *refine, *fixed) == 0
    textured = state(tmp_path / "outputs/texture/trial/ckpts/last.ckpt")
    for key in ("sdf", "deformation", "isosurface_bbox"):
        assert torch.equal(textured[f"geometry.{key}"], weights[f"geometry.{key}"])
    # It exports without the earlier stages, and goes on from its own checkpoint.
    shutil.rmtree(tmp_path / "outputs/coarse")
    shutil.rmtree(tmp_path / "outputs/refine")
    resume = [*refine, *fixed, "resume=outputs/texture/trial/ckpts/last.ckpt"]
    assert launch("--export", *resume, "system.exporter.fmt=glb", "system.exporter.save_uv=false") == 0
    assert trimesh.load_mesh(tmp_path / "outputs/texture/trial/save/it2-export/model.glb").faces.shape[0] > 50
    assert launch("--train", *resume, "trainer.max_steps=3") == 0


def test_distance_field_to_grid(launch, tmp_path, monkeypatch):
    monkeypatch.setattr(shape_fit, "STEPS", 150)
    monkeypatch.setattr(shape_fit, "BATCH", 512)
    assert launch("--train", *SDF, "system.optimizer.args.lr=1e-5") == 0  # the start, nearly as it was
    convert = "system.geometry_convert_from=outputs/sdf/trial/ckpts/last.ckpt"
    assert launch("--train", *GRID, convert, "trainer.max_steps=1") == 0  # in a box a fifth larger than the ball
    weights = state(tmp_path / "outputs/refine/trial/ckpts/last.ckpt")
    assert weights["geometry.isosurface_bbox"][1].sub(0.72).abs().max() < 0.12


def test_runs_with_a_shape_to_start_from_repeat_and_resume(launch, tmp_path):
    trimesh.creation.icosphere(2, radius=0.6).export(tmp_path / "ball.glb")
    start = [*GRID, f"system.geometry.shape_init=mesh:{tmp_path}/ball.glb"]
    assert launch("--train", *start) == 0
    last = tmp_path / "outputs/refine/trial/ckpts/last.ckpt"
    first = state(last)
    assert launch("--train", *start, "name=again") == 0
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.values(), state(tmp_path / "outputs/again/trial/ckpts/last.ckpt").values())
    )
    # Resumed, the run goes on from its checkpoint, even where the shape is to be forced.
    assert launch("--train", *start, "name=half", "trainer.max_steps=1") == 0
    half = "resume=outputs/half/trial/ckpts/last.ckpt"
    assert launch("--train", *start, "name=half", half, "system.geometry.force_shape_init=true") == 0
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.values(), state(tmp_path / "outputs/half/trial/ckpts/last.ckpt").values())
    )


def test_what_cannot_be_handed_over_is_one_line(launch, tmp_path, capsys):
    assert launch("--train", "trainer.max_steps=1") == 0
    coarse, parsed = tmp_path / COARSE, tmp_path / "outputs/coarse/trial/configs/parsed.yaml"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs").rglob("*")}

    def refused(*overrides):
        capsys.readouterr()
        assert launch("--train", *GRID, *overrides) != 0
        error = capsys.readouterr().err
        line = [text for text in error.splitlines() if text.startswith("error: ")]
        assert len(line) == 1 and "Traceback" not in error
        assert not (tmp_path / "outputs/refine").exists()
        return line[0]

    convert = f"system.geometry_convert_from={COARSE}"
    empty = refused(convert, "system.geometry_convert_override.isosurface_threshold=1e4")
    assert COARSE in empty and "isosurface_threshold=1e+04" in empty and "values are in [" in empty
    assert "no path matches" in refused("system.geometry_convert_from=outputs/nothingLAST/ckpts/last.ckpt")
    assert "checkpoint not found: nowhere.ckpt" in refused("system.geometry_convert_from=nowhere.ckpt")
    assert "isosurface_threshold" in refused(convert, "system.geometry_convert_override.isosurface_treshold=3")
    assert "do not fit" in refused(convert, "system.geometry_convert_override.n_feature_dims=5")
    assert "lacks weights" in refused(convert, "system.geometry_convert_override.normal_type=pred")
    assert "4096" in refused(convert, "system.geometry.isosurface_resolution=4096")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs").rglob("*")} == before  # nothing is touched

    text = parsed.read_text()
    parsed.write_text(text.replace("implicit-volume", "implicit-volum"))
    assert "implicit-volume" in refused(convert)
    parsed.write_text("{")
    assert "parsed.yaml" in refused(convert)
    parsed.unlink()
    assert "no config beside it" in refused(convert)
    parsed.write_text(text)
    coarse.write_bytes(coarse.read_bytes()[:1000])
    assert "is corrupt or not a checkpoint" in refused(convert)
