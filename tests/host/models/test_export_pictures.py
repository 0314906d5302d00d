"""Exported files, read by other readers, look like the renderer's pictures and are valid in their formats."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import fast_simplification
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import trimesh
from scipy.ndimage import gaussian_filter
from skimage.measure import marching_cubes

import threestudio
from tests.host.models.mesh_pictures import Solid, first_hits, intersection_over_union, picture, psnr, shaded_points
from threestudio.models.exporters.simplification import is_watertight, simplify
from threestudio.models.geometry.base import BaseImplicitGeometry
from threestudio.models.mesh import Mesh
from threestudio.utils.errors import UserError
from threestudio.utils.mesh_reading import load_mesh_file
from threestudio.utils.saving import SaverMixin, describe_files

SIZE, BACKGROUND = 28, 1.0
NOSE = torch.tensor([0.42, 0.12, 0.2])


class Head(BaseImplicitGeometry):
    """A ball with a nose to its front and left: no symmetry hides a wrong axis. Each side has a colour of its own."""

    def _inside(self, points):
        return torch.maximum(
            0.5 - points.norm(dim=-1, keepdim=True), 0.16 - (points - NOSE.to(points)).norm(dim=-1, keepdim=True)
        )

    def forward_density(self, points):
        return 200.0 * ((self._inside(points) / 0.02) + 0.5).clamp(0, 1)

    def forward_field(self, points):
        return self._inside(points), None

    def forward_level(self, field, threshold):
        return threshold - field

    def export(self, points):
        return {"features": torch.logit((points * torch.tensor([0.9, -0.7, 0.5]) + 0.5).clamp(0.02, 0.98))}

    def forward(self, points, output_normal=False):
        out = {"density": self.forward_density(points), **self.export(points)}
        if output_normal:
            nose = (points - NOSE).norm(dim=-1, keepdim=True) < 0.16
            normal = F.normalize(torch.where(nose, points - NOSE, points), dim=-1)
            out["normal"] = out["shading_normal"] = normal
        return out


class Saver(SaverMixin):
    pass


def parts(geometry):
    return {
        "geometry": geometry,
        "material": threestudio.find("no-material")({}),
        "background": threestudio.find("solid-color-background")({"color": [BACKGROUND] * 3}),
    }


def export(folder, resolution=36, geometry=None, **config):
    """The lines that are printed, and the path of the first file."""
    geometry = geometry or Head({"isosurface_resolution": resolution, "isosurface_method": "mc-cpu"})
    exporter = threestudio.find("mesh-exporter")({"texture_size": 256, **config}, **parts(geometry))
    saver = Saver()
    saver.set_save_dir(str(folder))
    (output,) = exporter()
    written = getattr(saver, f"save_{output.save_type}")(output.save_name, **output.params)
    return describe_files(written, output.summary), Path(written[0])


def two_views():
    data = threestudio.find("random-camera-datamodule")(
        {"n_test_views": 5, "eval_height": SIZE, "eval_width": SIZE, "eval_camera_distance": 2.0, "eval_fovy_deg": 40}
    )
    data.setup("test")
    views = list(data.test_dataloader())
    return [views[0], views[3]]


@pytest.fixture(scope="module")
def rendered():
    """(rays_o, rays_d, rgb, mask) of two cameras, by the renderer of density fields."""
    torch.manual_seed(0)
    renderer = threestudio.find("nerf-volume-renderer")(
        {"num_samples_per_ray": 256, "grid_prune": False}, **parts(Head({}))
    ).eval()
    views = []
    with torch.no_grad():
        for view in two_views():
            out = renderer(**view)
            arrays = (view["rays_o"], view["rays_d"], out["comp_rgb"], out["opacity"][..., 0] > 0.5)
            views.append([array[0].numpy() for array in arrays])
    return views


@pytest.mark.parametrize(
    "config",
    [
        {"fmt": "glb"},
        {"fmt": "glb", "save_texture": False},
        {"fmt": "glb", "simplify_to": 900},
        {"fmt": "obj-mtl"},
        {"fmt": "obj"},
        {"fmt": "ply"},
    ],
    ids=str,
)
def test_files_look_as_the_scene_is_rendered(tmp_path, rendered, config):
    _, path = export(tmp_path, **config)
    for rays_o, rays_d, rgb, mask in rendered:
        shown, hit = picture(path, rays_o, rays_d, BACKGROUND)
        assert intersection_over_union(hit, mask) > 0.96
        assert psnr(shown[hit & mask], rgb[hit & mask]) > 27
        assert psnr(shown, rgb) > 20  # outlines have soft edges in the rendered picture


def test_the_pictures_tell_a_wrong_axis(tmp_path, rendered):
    """What the test above rests on: turned by the axes of another format, the same file fails it."""
    _, path = export(tmp_path, fmt="ply", up_axis="y")
    rays_o, rays_d, rgb, mask = rendered[0]
    shown, hit = picture(path, rays_o, rays_d, BACKGROUND)
    assert psnr(shown, rgb) < 16
    mesh = load_mesh_file(str(path), up="+y", front="+z")
    assert float(mesh.v_pos[:, 0].max()) == pytest.approx(0.58, abs=0.01)  # the nose is in front again


def test_the_normal_map_gives_back_what_simplification_took(tmp_path):
    """Normals of the file by glTF's rule, against those of the shape: nearer with the map than without."""
    _, path = export(tmp_path, fmt="glb", simplify_to=120, texture_size=512)
    point, normal, bent, _ = shaded_points(path)
    world = torch.from_numpy(point[:, [2, 0, 1]]).float()
    # By the nearest part of the shape, away from the crease between them.
    to_ball, to_nose = (world.norm(dim=-1) - 0.5).abs(), ((world - NOSE).norm(dim=-1) - 0.16).abs()
    clear = ((to_ball - to_nose).abs() > 0.05).numpy()
    true = F.normalize(torch.where((to_nose < to_ball)[:, None], world - NOSE, world), dim=-1).numpy()[:, [1, 2, 0]]
    angle = [
        np.degrees(np.arccos(((n / np.linalg.norm(n, axis=1, keepdims=True)) * true).sum(1).clip(-1, 1)))[clear].mean()
        for n in (normal, bent)
    ]
    assert angle[1] < 0.4 * angle[0] and angle[1] < 2


# ------------------------------------------------------------------------------------- validity


VALIDATE = """
const validator = require('gltf-validator'), fs = require('fs');
validator.validateBytes(new Uint8Array(fs.readFileSync(process.argv[1])))
  .then(report => console.log(JSON.stringify(report.issues)));
"""


@pytest.fixture(scope="session")
def gltf_issues():
    """What Khronos' glTF validator says of a file; NODE_PATH names the folder that npm installed it in."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node: glTF files are not validated")
    found = subprocess.run([node, "-e", "require('gltf-validator')"], capture_output=True)
    if found.returncode != 0:
        pytest.skip("node finds no gltf-validator: npm install --prefix DIR gltf-validator; NODE_PATH=DIR/node_modules")

    def issues(path):
        done = subprocess.run(
            [node, "-e", VALIDATE, str(path)], capture_output=True, text=True, check=True, env=os.environ
        )
        return json.loads(done.stdout)

    return issues


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"save_texture": False},
        {"save_texture": False, "save_normal": True},
        {"simplify_to": 200},
        {"save_normal_map": True, "save_normal": True},
    ],
    ids=str,
)
def test_glb_files_are_valid(tmp_path, gltf_issues, config):
    _, path = export(tmp_path, resolution=16, fmt="glb", **config)
    issues = gltf_issues(path)
    assert issues["numErrors"] == 0 and issues["numWarnings"] == 0, issues["messages"]


def test_the_validator_finds_errors(tmp_path, gltf_issues):
    _, path = export(tmp_path, resolution=16, fmt="glb", save_texture=False)
    path.write_bytes(path.read_bytes()[:-64])
    assert gltf_issues(path)["numErrors"] > 0


# ---------------------------------------------------------------------- what is said, other forms


def test_a_line_says_what_is_in_the_file(tmp_path):
    (line,), path = export(tmp_path, fmt="stl")
    mesh = trimesh.load(path)
    assert line.startswith(f"{path}: 0.")
    assert f"{len(mesh.faces):,} faces, {len(mesh.vertices):,} vertices, watertight, 1 component" in line
    lines, _ = export(tmp_path, fmt="obj-mtl", resolution=16)
    assert len(lines) == 3 and lines[2].startswith(str(tmp_path / "texture_kd.jpg"))
    open_mesh = Mesh(torch.eye(3), torch.tensor([[0, 1, 2]]))
    (line,), _ = export(tmp_path, fmt="stl", geometry=shape(open_mesh))
    assert "1 faces, 3 vertices, NOT watertight, 1 component" in line


@pytest.mark.parametrize("fmt", ["ply", "stl", "glb"])
def test_plain_forms_are_binary_and_closed(tmp_path, fmt):
    _, path = export(tmp_path, fmt=fmt, save_uv=False)
    mesh = load_mesh_file(str(path))
    assert is_watertight(mesh) and float(mesh.v_pos[:, 0].max()) == pytest.approx(0.58, abs=0.01)
    head = path.read_bytes()[:80]
    assert {"ply": b"format binary", "stl": b"\0", "glb": b"glTF"}[fmt] in head


def test_simplification_keeps_the_shape_closed():
    ball = trimesh.creation.torus(0.5, 0.2, 64, 32)
    mesh = Mesh(torch.from_numpy(ball.vertices.copy()).float(), torch.from_numpy(ball.faces.copy()))
    simple = simplify(mesh, 500)
    assert 480 <= simple.t_pos_idx.shape[0] <= 500 and is_watertight(simple)
    solid = trimesh.Trimesh(simple.v_pos, simple.t_pos_idx, process=False)
    assert solid.volume == pytest.approx(ball.volume, rel=0.03) and solid.euler_number == 0
    assert simplify(mesh, 10**6) is mesh


def test_a_rough_surface_that_quadrics_open_stays_closed():
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(28, 28, 28)), 1.2)
    noise[[0, -1]] = noise[:, [0, -1]] = noise[:, :, [0, -1]] = -1
    vertices, faces, _, _ = marching_cubes(noise, 0.05, gradient_direction="ascent")
    mesh = Mesh(torch.from_numpy(vertices.copy()), torch.from_numpy(faces.astype(np.int64)))
    points, triangles = fast_simplification.simplify(
        vertices.astype(np.float64), faces.astype(np.int64), target_count=9000
    )
    assert is_watertight(mesh) and not is_watertight(Mesh(torch.from_numpy(points), torch.from_numpy(triangles).long()))
    simple = simplify(mesh, 9000)
    assert 6000 < simple.t_pos_idx.shape[0] <= 9000 and is_watertight(simple)
    solids = [trimesh.Trimesh(m.v_pos, m.t_pos_idx, process=False) for m in (mesh, simple)]
    assert solids[1].volume == pytest.approx(solids[0].volume, rel=0.05) and solids[0].volume > 0


def shape(mesh):
    """A geometry whose surface is a given mesh."""
    geometry = Head({})
    geometry.isosurface = lambda: mesh
    return geometry


@pytest.mark.parametrize(
    "mesh, message",
    [
        (Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long)), "no triangles"),
        (
            Mesh(torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, float("nan"), 0]]), torch.tensor([[0, 1, 2]])),
            "1 of .* 3 vertices",
        ),
    ],
)
def test_broken_surfaces_leave_the_old_file(tmp_path, mesh, message):
    _, path = export(tmp_path, fmt="glb", resolution=16)
    before = path.read_bytes()
    with pytest.raises(UserError, match=message):
        export(tmp_path, fmt="glb", geometry=shape(mesh))
    assert path.read_bytes() == before


def test_a_write_that_fails_leaves_the_old_files(tmp_path, monkeypatch):
    export(tmp_path, fmt="obj-mtl", resolution=16)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert set(before) == {"model.obj", "model.mtl", "texture_kd.jpg"}

    def full(path, text):
        Path(path).write_text("half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr("threestudio.utils.mesh_files.write_text", full)
    with pytest.raises(OSError, match="no space"):
        export(tmp_path, fmt="obj-mtl", resolution=20)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "config, message",
    [
        ({"fmt": "gltf"}, "fmt: expected one of .* got 'gltf'"),
        ({"fmt": "glb", "up_axis": "z"}, "up_axis.*glTF files have y up"),
        ({"up_axis": "x"}, "up_axis: expected one of auto, y, z"),
        ({"simplify_to": 3}, "simplify_to: expected 0 .* at least 4"),
        ({"texture_size": 100000}, "texture_size: expected 1 to 16384, got 100000"),
    ],
)
def test_impossible_exports_are_one_line(tmp_path, config, message):
    with pytest.raises(UserError, match=message):
        export(tmp_path, resolution=16, **config)
    assert not list(tmp_path.iterdir())


def test_a_texture_beyond_memory_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("threestudio.utils.memory.free_memory", lambda device: 10**9)
    with pytest.raises(UserError, match="texture_size: 8192 needs .* GB of memory, 1 GB are free"):
        export(tmp_path, texture_size=8192)


def test_ray_casting_meets_a_known_square():
    solid = read_square()
    face, weights = first_hits(solid, np.array([[0.25, 0.5, 1.0], [3, 3, 1]]), np.array([[0, 0, -1.0], [0, 0, -1]]))
    assert face.tolist() == [0, -1] and np.allclose(weights[0] @ solid.vertices[solid.faces[0]], [0.25, 0.5, 0])


def read_square():
    vertices = np.array([[0.0, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0]])
    return Solid(vertices, np.array([[0, 2, 1], [0, 3, 2]]), None, None, None)
