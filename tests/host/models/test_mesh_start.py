"""A mesh file as the first state: shape and colours are there before the first step, for each representation."""

import re

import numpy as np
import pytest
import torch
import trimesh

import threestudio
from tests.host.launches import ROOT
from threestudio.models.geometry import mesh_start
from threestudio.models.geometry.mesh_start import (
    MeshStartConfig,
    inverse_activation,
    mesh_start_config,
    read_start_mesh,
)
from threestudio.utils.errors import UserError

ENCODING = {
    "otype": "HashGrid", "n_levels": 6, "n_features_per_level": 2, "log2_hashmap_size": 14, "base_resolution": 8,
    "per_level_scale": 1.5,
}  # fmt: skip
SMALL = {"pos_encoding_config": ENCODING}
HALF = np.array([0.5, 0.35, 0.25])  # half sides of the box
KINDS = {
    "implicit-volume": {**SMALL, "isosurface_resolution": 32, "isosurface_method": "mc-cpu"},
    "implicit-sdf": {**SMALL, "isosurface_resolution": 32, "isosurface_method": "mc-cpu"},
    "tetrahedra-sdf-grid": {**SMALL, "isosurface_resolution": 32},
    "volume-grid": {
        "grid_size": [32, 32, 32], "isosurface_resolution": 48, "isosurface_method": "mc-cpu",
        "isosurface_threshold": 10.0,
    },
    "custom-mesh": SMALL,
}  # fmt: skip


@pytest.fixture()
def few_points(monkeypatch):
    monkeypatch.setattr(mesh_start, "POINTS_PER_STEP", 2**10)
    monkeypatch.setattr(mesh_start, "LARGEST_POOL", 2**14)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def box_file(tmp_path_factory):
    """A rounded box, red in front (+x), green behind, with a fine mesh so that vertices can carry the border."""
    solid = trimesh.creation.icosphere(subdivisions=3)
    vertices = solid.vertices / (np.abs(solid.vertices) ** 6).sum(1, keepdims=True) ** (1 / 6) * HALF
    colors = np.where(vertices[:, :1] > 0, [[230, 30, 30, 255]], [[30, 200, 30, 255]]).astype(np.uint8)
    path = tmp_path_factory.mktemp("start") / "box.ply"
    trimesh.Trimesh(vertices, solid.faces, vertex_colors=colors, process=False).export(str(path))
    return str(path)


@pytest.mark.parametrize("kind", list(KINDS))
def test_shape_and_colours_are_the_files(few_points, box_file, kind):
    config = dict(KINDS[kind])
    if kind == "custom-mesh":
        config["shape_init"] = f"mesh:{box_file}"
    geometry, material = threestudio.find(kind)(config), threestudio.find("no-material")({})
    geometry.init_from_mesh(
        read_start_mesh(box_file, MeshStartConfig(), 1.0), material, steps=300 if kind == "implicit-volume" else 150
    )
    with torch.no_grad():
        surface = geometry.isosurface()
        albedo = material.export(points=surface.v_pos, **geometry.export(points=surface.v_pos))["albedo"]
    size = (surface.v_pos.amax(0) - surface.v_pos.amin(0)).numpy() / 2
    assert np.abs(size - HALF).max() < 0.05
    truth = trimesh.load(box_file, process=False)
    made = trimesh.Trimesh(surface.v_pos, surface.t_pos_idx, process=False)
    assert made.is_watertight and made.volume == pytest.approx(truth.volume, rel=0.15)
    front = surface.v_pos[:, 0] > 0.1
    back = surface.v_pos[:, 0] < -0.1
    assert (albedo[front].mean(0) - torch.tensor([230.0, 30, 30]) / 255).abs().max() < 0.1
    assert (albedo[back].mean(0) - torch.tensor([30.0, 200, 30]) / 255).abs().max() < 0.1


def test_a_shape_without_colours(few_points, tmp_path, caplog):
    path = str(tmp_path / "ball.stl")
    trimesh.creation.icosphere(radius=0.4, subdivisions=2).export(path)
    geometry = threestudio.find("tetrahedra-sdf-grid")(KINDS["tetrahedra-sdf-grid"])
    before = {name: p.clone() for name, p in geometry.named_parameters() if "network" in name}
    geometry.init_from_mesh(read_start_mesh(path, MeshStartConfig(), 1.0), threestudio.find("no-material")({}), steps=5)
    assert geometry.isosurface().v_pos.detach().norm(dim=-1).mean() == pytest.approx(0.4, abs=0.02)
    assert before and all(torch.equal(p, before[name]) for name, p in geometry.named_parameters() if name in before)


def test_placing(box_file):
    mesh = read_start_mesh(box_file, MeshStartConfig(size=0.9, up="+x", front="+z"), 1.0)
    assert mesh.v_pos[:, 2].max() == pytest.approx(0.9) and mesh.v_pos[:, 2].min() == pytest.approx(-0.9)
    with pytest.raises(UserError, match="reaches to 0.5, beyond geometry.radius=0.4; .*size=0.32"):
        read_start_mesh(box_file, MeshStartConfig(), 0.4)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"size": 0.0}, "size: expected > 0 or null, got 0"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"up": "+w"}, "up: expected one of"),
        ({"front": "x"}, "front: expected one of"),
    ],
)
def test_options_that_cannot_be(wrong, message):
    with pytest.raises(UserError, match=f"system.init_from_mesh_options.{re.escape(message)}"):
        mesh_start_config(wrong)


@pytest.mark.parametrize("activation", ["softplus", "trunc_exp", "exp", None])
def test_inverse_activation(activation):
    from threestudio.utils.ops import get_activation

    for value in (1e-3, 1.0, 50.0):
        raw = torch.tensor(inverse_activation(activation, value), dtype=torch.float64)
        assert get_activation(activation)(raw).item() == pytest.approx(value, rel=1e-6)


class Nothing(mesh_start.BaseGeometry):
    def configure(self):
        pass


def test_a_geometry_that_cannot_says_so():
    with pytest.raises(UserError, match="system.init_from_mesh: Nothing cannot start from a mesh"):
        Nothing({}).init_from_mesh(None, None, 1)


# -------------------------------------------------------------------- through the command line

SYSTEM = [
    "data.caption=a red chair with blue legs", "system.geometry.isosurface_resolution=24",
    "system.geometry.pos_encoding_config.n_levels=2", "data.size=8", "data.n_train_views=2", "data.n_test_views=1",
    "trainer.max_steps=1", "data.batch_size=1",
]  # fmt: skip


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (
            b"glTF" + (2).to_bytes(4, "little") + (4000).to_bytes(4, "little") + b"half of a file",
            "cut short: 26 of 4000 bytes",
        ),
        (None, "no file"),
    ],
)
def test_a_broken_file_ends_the_run_in_one_line(tmp_path, monkeypatch, capsys, content, message):
    from launch import main

    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "start.glb").write_bytes(content)
    arguments = ["--config", str(ROOT / "configs/fit-nerf.yaml"), "--train", *SYSTEM, "system.init_from_mesh=start.glb"]
    assert main(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert line.startswith("error: system.init_from_mesh: ") and message in line and "start.glb" in line
    assert not (tmp_path / "outputs").exists()
