"""Meshes of others are read in place and with their colours; what is broken is one clear line."""

import struct

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from threestudio.models.exporters.simplification import is_watertight
from threestudio.utils.errors import UserError
from threestudio.utils.mesh_reading import Texture, load_mesh_file, rotation_to_world

CORNER = np.array([0.3, 0.2, 0.6])


def box(**kwargs):
    """A closed box from the origin's negative side to CORNER: each axis has a length of its own."""
    mesh = trimesh.creation.box(bounds=[-0.5 * CORNER, CORNER])
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False, **kwargs)


def textured(tmp_path=None):
    """A square of two triangles whose picture is red to the left and blue to the right, dark in its lower half."""
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:, :4, 0], picture[:, 4:, 2] = 200, 200
    picture[4:] //= 2
    vertices = np.array([[0.0, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1]])
    uv = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    return vertices, np.array([[0, 1, 2], [0, 2, 3]]), uv, Image.fromarray(picture)


@pytest.mark.parametrize("ending", ["ply", "obj", "stl", "off", "glb"])
def test_every_form_is_read_in_its_place(tmp_path, ending):
    colors = np.tile(np.array([[255, 128, 0, 255]], np.uint8), (8, 1))
    path = str(tmp_path / f"box.{ending}")
    box(vertex_colors=colors).export(path)
    mesh = load_mesh_file(path)
    high = CORNER[[2, 0, 1]] if ending == "glb" else CORNER  # y up, front +z
    assert np.allclose(mesh.v_pos.amax(0), high, atol=1e-6) and np.allclose(mesh.v_pos.amin(0), -0.5 * high, atol=1e-6)
    assert mesh.v_pos.shape == (8, 3) and is_watertight(mesh)
    if ending in ("stl", "off"):  # trimesh writes no colours there
        assert not mesh.extras["has_colors"] and (mesh.v_rgb == 0.5).all()
        return
    expected = np.array([1.0, 128 / 255, 0])
    if ending == "glb":  # bytes of linear light
        expected[1] = 1.055 * expected[1] ** (1 / 2.4) - 0.055
    assert mesh.extras["has_colors"] and np.allclose(mesh.v_rgb, expected, atol=3e-3)


def test_axes_of_a_file(tmp_path):
    path = str(tmp_path / "box.ply")
    box().export(path)
    mesh = load_mesh_file(path, up="+y", front="-x")
    assert np.allclose(mesh.v_pos.amax(0), [0.5 * CORNER[0], CORNER[2], CORNER[1]], atol=1e-6)
    for up, front in (("+z", "+x"), ("+y", "+z"), ("-x", "+z")):
        assert np.linalg.det(rotation_to_world(up, front)) == pytest.approx(1)
    with pytest.raises(UserError, match="axis up .* expected one of"):
        load_mesh_file(path, up="z")
    with pytest.raises(UserError, match="different axes"):
        load_mesh_file(path, up="+x", front="-x")


@pytest.mark.parametrize("ending", ["glb", "obj"])
def test_textures_are_sampled_where_they_lie(tmp_path, ending):
    vertices, faces, uv, picture = textured()
    if ending == "glb":
        material = trimesh.visual.material.PBRMaterial(baseColorTexture=picture, baseColorFactor=[255, 255, 255, 255])
        vertices = vertices[:, [1, 2, 0]]
    else:
        material = trimesh.visual.material.SimpleMaterial(image=picture)
    visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    path = str(tmp_path / f"square.{ending}")
    trimesh.Trimesh(vertices, faces, visual=visual, process=False).export(path)
    mesh = load_mesh_file(path)
    barycentric = torch.rand(400, 3) + 0.01
    barycentric /= barycentric.sum(1, keepdim=True)
    face = torch.randint(2, (400,))
    at = (barycentric[..., None] * mesh.v_pos[mesh.t_pos_idx[face]]).sum(1)
    y, z = at[:, 1], at[:, 2]
    clear = ((y - 0.5).abs() > 0.07) & ((z - 0.5).abs() > 0.07) & (y > 0.07) & (y < 0.93) & (z > 0.07) & (z < 0.93)
    bright = torch.where(z > 0.5, 200 / 255, 100 / 255)
    expected = torch.stack([bright * (y < 0.5), torch.zeros_like(y), bright * (y > 0.5)], -1)
    color = mesh.extras["colors"].at(face, barycentric)
    assert clear.sum() > 100 and (color - expected)[clear].abs().max() < 0.02


def test_parts_of_a_scene_come_together(tmp_path):
    scene = trimesh.Scene()
    for x, color in ((0.0, [255, 0, 0, 255]), (3.0, [0, 0, 255, 255])):
        material = trimesh.visual.material.PBRMaterial(baseColorFactor=color)
        part = trimesh.creation.box([1, 1, 1])
        part = trimesh.Trimesh(part.vertices, part.faces, process=False)
        part.visual = trimesh.visual.TextureVisuals(material=material)
        place = np.eye(4)
        place[0, 3] = x
        if x:
            place[0, 0] = -1.0  # a mirrored part is turned inside out by its place, and back by the reader
        scene.add_geometry(part, transform=place)
    path = str(tmp_path / "two.glb")
    scene.export(path)
    mesh = load_mesh_file(path)
    assert mesh.t_pos_idx.shape == (24, 3) and is_watertight(mesh)
    right = mesh.v_pos[:, 1] > 1.5  # the file's x is the world's y
    assert np.allclose(mesh.v_rgb[right], [0, 0, 1], atol=0.01)
    assert np.allclose(mesh.v_rgb[~right], [1, 0, 0], atol=0.01)
    assert trimesh.Trimesh(mesh.v_pos, mesh.t_pos_idx, process=False).volume == pytest.approx(2.0)


def test_an_inside_out_solid_is_turned(tmp_path):
    mesh = box()
    mesh.invert()
    path = str(tmp_path / "inverted.stl")
    mesh.export(path)
    read = load_mesh_file(path)
    assert trimesh.Trimesh(read.v_pos, read.t_pos_idx, process=False).volume > 0


def test_textures_are_sampled_between_their_texels():
    texels = torch.tensor([[[0], [51]], [[102], [153]]], dtype=torch.uint8).repeat(1, 1, 3)
    uv = torch.tensor([[0.25, 0.25], [0.5, 0.5], [0.75, 0.75], [1.25, 0.25], [0.0, 0.25]])
    assert Texture(texels).at(uv)[:, 0].tolist() == pytest.approx([0, 0.3, 0.6, 0, 0.1])
    assert Texture(texels, nearest=True).at(uv)[:, 0].tolist() == pytest.approx([0, 0.6, 0.6, 0, 0])


@pytest.mark.parametrize("wrap, expected", [("repeat", "aabbaabb"), ("mirror", "bbaaaabbbbaa"), ("clamp", "aaaabbbb")])
def test_textures_go_on_outside(wrap, expected):
    """A row of two texels, a and b, looked at from u = -1 (mirror) or -0.5 on, four times a texel's width."""
    texels = torch.tensor([[[0, 0, 0], [255, 255, 255]]], dtype=torch.uint8)
    start = {"repeat": -1.0, "mirror": -1.0, "clamp": -0.5}[wrap]
    u = start + (torch.arange(len(expected)) + 0.5) / 4
    uv = torch.stack([u, torch.full_like(u, 0.5)], -1)
    seen = Texture(texels, wrap, wrap, nearest=True).at(uv)[:, 0]
    assert "".join("ab"[int(value)] for value in seen) == expected


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("ending", ["ply", "stl", "glb", "obj"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_a_file_cut_short_says_so(tmp_path, ending, share):
    path = tmp_path / f"box.{ending}"
    box().export(str(path))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="empty|cut short|no triangles|broken") as error:
        load_mesh_file(str(path))
    assert "\n" not in str(error.value) and path.name in str(error.value)


def test_what_is_no_mesh_is_named(tmp_path):
    cases = []
    columns = [f"property float {name}" for name in "xyz"]
    header = ["ply", "format binary_little_endian 1.0", "element vertex 2", *columns, "end_header\n"]
    (tmp_path / "points.ply").write_bytes("\n".join(header).encode() + struct.pack("<6f", *range(6)))
    cases.append((tmp_path / "points.ply", "holds points"))
    nan = box()
    nan.vertices[3, 1] = np.nan
    nan.export(str(tmp_path / "nan.stl"))
    cases.append((tmp_path / "nan.stl", "coordinates that are not finite"))
    flat = trimesh.Trimesh(np.zeros((3, 3)), [[0, 1, 2]], process=False)
    flat.export(str(tmp_path / "flat.stl"))
    cases.append((tmp_path / "flat.stl", "no area"))
    (tmp_path / "index.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n")
    cases.append((tmp_path / "index.obj", "broken"))
    (tmp_path / "text.glb").write_text("this is no model, whatever its name says")
    cases.append((tmp_path / "text.glb", "no GLB file"))
    cases.append((tmp_path / "missing.glb", "no file"))
    cases.append((tmp_path / "model.fbx", "expected a file ending in .glb, .gltf"))
    for path, message in cases:
        with pytest.raises(UserError, match=message) as error:
            load_mesh_file(str(path), key="system.init_from_mesh")
        assert str(error.value).startswith("system.init_from_mesh: ") and "\n" not in str(error.value)


def test_a_missing_texture_is_named(tmp_path):
    vertices, faces, uv, picture = textured()
    visual = trimesh.visual.TextureVisuals(uv=uv, material=trimesh.visual.material.SimpleMaterial(image=picture))
    trimesh.Trimesh(vertices, faces, visual=visual, process=False).export(str(tmp_path / "square.obj"))
    for file in tmp_path.glob("*.png"):
        file.unlink()
    with pytest.raises(UserError, match="material.mtl names the texture .*png, which is not there"):
        load_mesh_file(str(tmp_path / "square.obj"))
    assert load_mesh_file(str(tmp_path / "square.obj"), colors=False).t_pos_idx.shape == (2, 3)
    (tmp_path / "material.mtl").unlink()
    with pytest.raises(UserError, match="names the material file material.mtl"):
        load_mesh_file(str(tmp_path / "square.obj"))
