"""Texture coordinates of a mesh file: read from every format that has some, kept by custom-mesh and on export."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import trimesh
from PIL import Image

import threestudio
from tests.host.models.mesh_pictures import shaded_points
from threestudio.models.exporters.texture_baking import keeps_own_uv
from threestudio.models.mesh import Mesh
from threestudio.utils.errors import UserError
from threestudio.utils.mesh_reading import load_mesh_file
from threestudio.utils.saving import SaverMixin

# A box whose sides lie in a grid of 3 x 2 squares with margins, v up.
BOX = trimesh.creation.box((0.8, 0.6, 1.0))
GRID = {"otype": "HashGrid", "n_levels": 2, "n_features_per_level": 2, "log2_hashmap_size": 8, "base_resolution": 4}


def side_of(normal: np.ndarray) -> int:
    return 2 * int(np.abs(normal).argmax()) + int(normal.sum() > 0)


def corner_coordinates(point: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Where the corner of a side lies in the picture: u, v up."""
    side = side_of(normal)
    across = np.delete(point / BOX.extents + 0.5, side // 2)  # [0, 1]^2
    return (np.array([side % 3, side // 3]) + 0.1 + 0.8 * across) / [3, 2]


def box_with_coordinates() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices [24, 3], faces [12, 3], coordinates [24, 2], no vertex shared by two sides."""
    vertices, coordinates, faces, index = [], [], [], {}
    for face, normal in zip(BOX.faces, BOX.face_normals):
        row = []
        for corner in face:
            key = (int(corner), side_of(normal))
            if key not in index:
                index[key] = len(vertices)
                vertices.append(BOX.vertices[corner])
                coordinates.append(corner_coordinates(BOX.vertices[corner], normal))
            row.append(index[key])
        faces.append(row)
    return np.array(vertices), np.array(faces), np.array(coordinates)


def write_obj(path, picture: bool, half: bool = False) -> None:
    vertices, faces, coordinates = box_with_coordinates()
    lines = ["mtllib box.mtl", "usemtl m"] if picture else []
    lines += [f"v {x} {y} {z}" for x, y, z in vertices] + [f"vt {u} {v}" for u, v in coordinates]
    for number, face in enumerate(faces):
        without = half and number % 2
        lines.append("f " + " ".join(f"{i + 1}" if without else f"{i + 1}/{i + 1}" for i in face))
    path.write_text("\n".join(lines))
    (path.parent / "box.mtl").write_text("newmtl m\nmap_Kd box.png\n")
    Image.new("RGB", (4, 4), (200, 10, 10)).save(path.parent / "box.png")


def write_glb(path, picture: bool) -> None:
    vertices, faces, coordinates = box_with_coordinates()
    image = Image.new("RGB", (4, 4), (200, 10, 10)) if picture else None
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=image)
    visual = trimesh.visual.TextureVisuals(uv=coordinates, material=material)
    turned = vertices[:, [1, 2, 0]]  # world to glTF
    trimesh.Trimesh(turned, faces, visual=visual, process=False).export(path)


def write_ply(path, picture: bool) -> None:
    vertices, faces, coordinates = box_with_coordinates()
    header = ["ply", "format ascii 1.0", *(["comment TextureFile box.png"] if picture else [])]
    header += [f"element vertex {len(vertices)}", *(f"property float {n}" for n in ("x", "y", "z", "s", "t"))]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    rows = [" ".join(map(str, row)) for row in np.concatenate([vertices, coordinates], 1)]
    path.write_text("\n".join([*header, *rows, *(f"3 {a} {b} {c}" for a, b, c in faces)]) + "\n")
    Image.new("RGB", (4, 4), (200, 10, 10)).save(path.parent / "box.png")


WRITERS = {"obj": write_obj, "glb": write_glb, "ply": write_ply}


def assert_the_box_has_its_coordinates(mesh: Mesh) -> None:
    assert mesh.has_own_uv and mesh.v_pos.shape[0] == 8 and mesh.v_tex.shape[0] == 24
    points, coordinates = mesh.v_pos[mesh.t_pos_idx].numpy(), mesh.v_tex[mesh.t_tex_idx].numpy()
    normals = np.cross(points[:, 1] - points[:, 0], points[:, 2] - points[:, 0])
    for corners, uv, normal in zip(points, coordinates, normals):
        expected = np.stack([corner_coordinates(corner, normal) for corner in corners])
        np.testing.assert_allclose(uv * [1, -1] + [0, 1], expected, atol=1e-5)


@pytest.mark.parametrize("colors", [True, False], ids=["with colours", "shape alone"])
@pytest.mark.parametrize("picture", [True, False], ids=["with a texture", "without"])
@pytest.mark.parametrize("ending", WRITERS)
def test_every_format_with_coordinates_gives_them(tmp_path, ending, picture, colors):
    WRITERS[ending](tmp_path / f"box.{ending}", picture)
    assert_the_box_has_its_coordinates(load_mesh_file(str(tmp_path / f"box.{ending}"), colors=colors))


@pytest.mark.parametrize("numbers, kind", [(3, "VEC3"), (1, "SCALAR")])
def test_a_glb_whose_coordinates_are_no_pairs_is_broken(tmp_path, numbers, kind):
    write_glb(tmp_path / "box.glb", picture=False)
    content = (tmp_path / "box.glb").read_bytes()
    length = int.from_bytes(content[12:16], "little")
    tree = json.loads(content[20 : 20 + length])
    (primitive,) = tree["meshes"][0]["primitives"]
    tree["accessors"][primitive["attributes"]["TEXCOORD_0"]].update(type=kind, count=48 // numbers)
    text = json.dumps(tree, separators=(",", ":")).encode()
    assert len(text) <= length
    (tmp_path / "box.glb").write_bytes(content[:20] + text.ljust(length) + content[20 + length :])
    for colors in (True, False):
        with pytest.raises(UserError, match=f"is broken.*TEXCOORD_0 has {numbers} numbers, expected 2"):
            load_mesh_file(str(tmp_path / "box.glb"), colors=colors)


def test_a_mesh_of_which_some_faces_have_none_has_none(tmp_path):
    write_obj(tmp_path / "box.obj", picture=False, half=True)
    assert not load_mesh_file(str(tmp_path / "box.obj")).has_own_uv
    BOX.export(tmp_path / "plain.stl")
    assert not load_mesh_file(str(tmp_path / "plain.stl")).has_own_uv


# ------------------------------------------------------------------------------------- custom-mesh and export


class Saver(SaverMixin):
    pass


def custom_mesh(path, **config):
    torch.manual_seed(0)
    return threestudio.find("custom-mesh")(
        {"shape_init": f"mesh:{path}", "pos_encoding_config": {**GRID, "per_level_scale": 1.5}, **config}
    )


def exported(folder, geometry, material=None, **config):
    parts = {
        "geometry": geometry,
        "material": material or threestudio.find("no-material")({}),
        "background": threestudio.find("solid-color-background")({}),
    }
    given = {"fmt": "obj-mtl", "texture_size": 96, "texture_format": "png", **config}
    (output,) = threestudio.find("mesh-exporter")(given, **parts)()
    saver = Saver()
    saver.set_save_dir(str(folder))
    return getattr(saver, f"save_{output.save_type}")(output.save_name, **output.params)[0]


@pytest.mark.parametrize("fmt", ["obj-mtl", "glb"])
def test_an_export_keeps_them_and_the_texture_fits_the_first_file(tmp_path, fmt):
    write_obj(tmp_path / "box.obj", picture=False)
    geometry = custom_mesh(tmp_path / "box.obj")
    mesh = load_mesh_file(exported(tmp_path / "out", geometry, fmt=fmt))
    assert_the_box_has_its_coordinates(mesh)
    # The texture, seen by the coordinates of the file that was given, has the colours of the surface there.
    source = load_mesh_file(str(tmp_path / "box.obj"))
    weights = torch.distributions.Dirichlet(torch.ones(3)).sample((500,))
    face = torch.randint(12, (500,))
    point = (weights[..., None] * source.v_pos[source.t_pos_idx[face]]).sum(1)
    uv = (weights[..., None] * source.v_tex[source.t_tex_idx[face]]).sum(1)
    inside = mesh.extras["colors"].textures[0].at(uv)
    expected = geometry.export(points=point)["features"].sigmoid()
    assert (inside - expected).abs().max() < 0.03


def test_without_keep_uv_and_when_simplified_it_is_unwrapped(tmp_path):
    write_obj(tmp_path / "box.obj", picture=False)
    geometry = custom_mesh(tmp_path / "box.obj")
    charts = load_mesh_file(exported(tmp_path / "out", geometry, keep_uv=False))
    with pytest.raises(AssertionError):
        assert_the_box_has_its_coordinates(charts)
    ball = trimesh.creation.icosphere(3, radius=0.5)
    flat = trimesh.Trimesh(
        ball.vertices, ball.faces, visual=trimesh.visual.TextureVisuals(uv=ball.vertices[:, :2] + 0.5), process=False
    )
    flat.export(tmp_path / "ball.obj")
    simple = load_mesh_file(exported(tmp_path / "out", custom_mesh(tmp_path / "ball.obj"), simplify_to=200))
    assert len(simple.t_pos_idx) <= 200 and keeps_own_uv(simple, None)


def test_a_checkpoint_has_them_and_one_from_before_has_none(tmp_path):
    write_obj(tmp_path / "box.obj", picture=False)
    BOX.export(tmp_path / "plain.stl")
    kept, other = custom_mesh(tmp_path / "box.obj"), custom_mesh(tmp_path / "plain.stl")
    state = kept.state_dict()
    assert not other.isosurface().has_own_uv
    other.load_state_dict(state)
    assert_the_box_has_its_coordinates(other.isosurface())
    old = {name: value for name, value in state.items() if "tex_buffer" not in name}
    kept.load_state_dict(old)
    assert not kept.isosurface().has_own_uv


def test_a_mesh_that_is_started_from_brings_its_own(tmp_path):
    write_obj(tmp_path / "box.obj", picture=False)
    BOX.export(tmp_path / "plain.stl")
    geometry = custom_mesh(tmp_path / "plain.stl")
    material = threestudio.find("no-material")({})
    geometry.init_from_mesh(load_mesh_file(str(tmp_path / "box.obj")), material, steps=1)
    assert_the_box_has_its_coordinates(geometry.isosurface())


def write_mirrored_sheet(path, count: int = 6) -> None:
    """An arched sheet whose halves, left and right of y = 0, lie on one another in the picture and share their seam."""
    x, y = (axis.ravel() for axis in np.meshgrid(*[np.linspace(-0.5, 0.5, 2 * count + 1)] * 2, indexing="ij"))
    side = 2 * count + 1
    first = np.array([i * side + j for i in range(side - 1) for j in range(side - 1)])
    faces = [np.stack(f, 1) for f in ((first, first + side, first + side + 1), (first, first + side + 1, first + 1))]
    lines = [f"v {a} {b} {0.3 - 0.4 * b * b}\nvt {0.05 + 1.8 * abs(b)} {0.5 + 0.9 * a}" for a, b in zip(x, y)]
    lines += ["f " + " ".join(f"{i + 1}/{i + 1}" for i in face) for face in np.concatenate(faces)]
    path.write_text("\n".join(lines))


def test_halves_that_mirror_one_another_have_the_shaded_normals_at_their_seam_too(tmp_path):
    write_mirrored_sheet(tmp_path / "sheet.obj")
    geometry = custom_mesh(tmp_path / "sheet.obj", n_feature_dims=8)
    bend = torch.tensor([0.4, 0.0, 0.3])  # the same on both sides
    shares = torch.cat([torch.full((5,), 0.5), 0.5 + 0.5 * bend])
    geometry.export = lambda points: {"features": shares.expand(len(points), 8)}
    material = threestudio.find("pbr-material")({"material_activation": "none"})
    path = exported(tmp_path / "out", geometry, material, fmt="glb", texture_size=256)
    _, normal, bent, _ = shaded_points(Path(path))
    normal, shown = (F.normalize(torch.from_numpy(each[:, [2, 0, 1]]).float(), dim=-1) for each in (normal, bent))
    expected = F.normalize(normal + bend - (normal @ bend)[:, None] * normal, dim=-1)
    assert torch.rad2deg(torch.acos((expected * shown).sum(-1).clamp(-1, 1))).max() < 2


def unit_square(*charts) -> Mesh:
    """Two triangles for each chart [4, 2], on a flat sheet."""
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    two = torch.tensor([[0, 1, 2], [0, 2, 3]])
    v_pos = torch.cat([corners + torch.tensor([2.0 * i, 0, 0]) for i in range(len(charts))])
    faces = torch.cat([two + 4 * i for i in range(len(charts))])
    mesh = Mesh(v_pos, faces)
    mesh.set_uv(torch.tensor(charts).view(-1, 2), faces)
    return mesh


LEFT = [[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]]
RIGHT = [[0.5, 0.0], [1.0, 0.0], [1.0, 1.0], [0.5, 1.0]]


def test_what_no_picture_can_hold_is_said(caplog):
    caplog.set_level(logging.WARNING)

    def said(mesh: Mesh, asked: bool | None, kept: bool) -> str:
        caplog.clear()
        assert keeps_own_uv(mesh, asked) is kept
        return caplog.text

    assert said(unit_square(LEFT, RIGHT), None, True) == ""
    assert said(unit_square(LEFT, RIGHT), False, False) == ""
    text = said(unit_square(LEFT, LEFT), None, True)  # mirrored halves
    assert "lie over one another (50% of their area): places that share a texel" in text
    assert "lie over one another (67% of their area): it gets others" in said(unit_square(*[LEFT] * 3), None, False)
    assert "(67% of their area): places that share" in said(unit_square(*[LEFT] * 3), True, True)
    palette = unit_square([[0.1 * u + 0.3, 0.1 * v + 0.3] for u, v in LEFT])
    assert "cover 0.50% of the picture: it gets others" in said(palette, None, False)
    assert "cover 0.50% of the picture: few texels" in said(palette, True, True)
    assert "leave the picture (tiles)" in said(unit_square([[u + 1, v] for u, v in LEFT]), True, False)
    assert "cover 0.00% of the picture" in said(unit_square([[0.3, 0.3]] * 4), True, False)


def test_coordinates_of_other_triangles_are_refused():
    mesh = unit_square(LEFT)
    with pytest.raises(UserError, match=r"t_tex_idx: expected \[2, 3\], got \[1, 3\]"):
        mesh.set_uv(mesh.v_tex, mesh.t_tex_idx[:1])
