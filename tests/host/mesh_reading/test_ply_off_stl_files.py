"""PLY, OFF and STL: colours of vertices and of faces, textures, and rows of all layouts."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from tests.host.mesh_reading.shapes import HALF, SIDE_UV, box_sides, box_triangles, colors_at, quarters
from threestudio.models.exporters.simplification import is_watertight
from threestudio.utils.errors import UserError
from threestudio.utils.mesh_reading import load_mesh_file

SIDE_COLORS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255], [0, 255, 255]])
MIDDLES = np.array([[-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, -1], [0, 0, 1]]) * HALF
XYZ = ["property float x", "property float y", "property float z"]


def corners_and_faces():
    """The box with eight vertices: [8, 3], and its sides [6, 4]."""
    vertices, index = np.unique(box_sides().reshape(-1, 3), axis=0, return_inverse=True)
    return vertices, index.reshape(6, 4)


def box_index():
    return corners_and_faces()[1]


def near_the_edges(side):
    """Points of a side [8, 3], near its corners and edges: where a colour that is smeared shows."""
    own = box_sides()[side]
    middle = own.mean(0)
    edges = (own + np.roll(own, 1, axis=0)) / 2
    return middle + 0.97 * (np.concatenate([own, edges]) - middle)


def each_side_has_its_colour(mesh):
    expected = torch.from_numpy(SIDE_COLORS / 255).float()
    return all(torch.allclose(colors_at(mesh, near_the_edges(side)), expected[side], atol=0.01) for side in range(6))


def ply(elements, rows, form="ascii"):
    """rows: text, or bytes where the form is binary."""
    head = "\n".join(["ply", f"format {form} 1.0", *elements, "end_header", ""]).encode()
    return head + (rows if isinstance(rows, bytes) else ("\n".join(rows) + "\n").encode())


def text_rows(rows):
    return [" ".join(map(str, row)) for row in rows]


# ------------------------------------------------------------------------------------------- PLY


@pytest.mark.parametrize("split", ["quads", "triangles", "both"])
@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_face_colours_of_a_ply(tmp_path, split, form):
    vertices, sides = corners_and_faces()
    faces = []
    for i, (side, color) in enumerate(zip(sides, SIDE_COLORS)):
        in_two = split == "triangles" or split == "both" and i % 2
        faces += [(side[[0, 1, 2]], color), (side[[0, 2, 3]], color)] if in_two else [(side, color)]
    elements = ["element vertex 8", *XYZ, f"element face {len(faces)}", "property list uchar int vertex_indices"]
    elements += [f"property uchar {name}" for name in ("red", "green", "blue")]
    if form == "ascii":
        rows = text_rows(vertices) + text_rows([len(f), *f, *color] for f, color in faces)
    else:
        order = "<" if form.endswith("little_endian") else ">"
        rows = vertices.astype(order + "f4").tobytes()
        rows += b"".join(struct.pack(f"{order}B{len(f)}i3B", len(f), *f, *color) for f, color in faces)
    (tmp_path / "box.ply").write_bytes(ply(elements, rows, form))
    mesh = load_mesh_file(str(tmp_path / "box.ply"))
    assert mesh.v_pos.shape == (8, 3) and is_watertight(mesh) and each_side_has_its_colour(mesh)


@pytest.mark.parametrize(
    "kind, names, values",
    [
        ("uchar", ("red", "green", "blue"), (51, 102, 204)),
        ("uchar", ("diffuse_red", "diffuse_green", "diffuse_blue"), (51, 102, 204)),
        ("ushort", ("red", "green", "blue"), (13107, 26214, 52428)),
        ("float", ("red", "green", "blue"), (0.2, 0.4, 0.8)),
        ("float", ("r", "g", "b"), (51.0, 102.0, 204.0)),
        ("int", ("red", "green", "blue"), (51, 102, 204)),
    ],
)
def test_vertex_colours_of_a_ply(tmp_path, kind, names, values):
    vertices, sides = corners_and_faces()
    elements = ["element vertex 8", *XYZ, *(f"property {kind} {name}" for name in names)]
    elements += ["element face 6", "property list uchar uint vertex_index"]
    rows = text_rows([*vertex, *values] for vertex in vertices) + text_rows([4, *side] for side in sides)
    (tmp_path / "box.ply").write_bytes(ply(elements, rows))
    mesh = load_mesh_file(str(tmp_path / "box.ply"))
    assert torch.allclose(mesh.v_rgb, torch.tensor([0.2, 0.4, 0.8]).expand(8, 3), atol=1e-4)


def test_white_vertices_under_coloured_faces_say_nothing(tmp_path):
    vertices, sides = corners_and_faces()
    channels = [f"property uchar {name}" for name in ("red", "green", "blue")]
    elements = ["element vertex 8", *XYZ, *channels, "element face 6"]
    elements += ["property list uchar int vertex_indices", *channels]
    faces = text_rows([4, *side, *color] for side, color in zip(sides, SIDE_COLORS))
    (tmp_path / "box.ply").write_bytes(ply(elements, text_rows([*v, 255, 255, 255] for v in vertices) + faces))
    assert each_side_has_its_colour(load_mesh_file(str(tmp_path / "box.ply")))
    (tmp_path / "box.ply").write_bytes(ply(elements, text_rows([*v, 51, 102, 204] for v in vertices) + faces))
    mesh = load_mesh_file(str(tmp_path / "box.ply"))
    assert torch.allclose(colors_at(mesh, MIDDLES), torch.tensor([0.2, 0.4, 0.8]).expand(6, 3), atol=1e-4)


@pytest.mark.parametrize("place", ["vertices", "faces"])
def test_textures_of_a_ply(tmp_path, place):
    """The picture lies upright on the side +x: its upper left quarter, red, where y is low and z is high."""
    vertices, faces, uv = box_triangles()
    Image.fromarray(quarters()).save(tmp_path / "my picture.png")
    elements = ["comment made by a test", "comment TextureFile my picture.png", "element vertex 24", *XYZ]
    if place == "vertices":
        elements += ["property float s", "property float t"]
        elements += ["element face 12", "property list uchar int vertex_indices"]
        rows = text_rows(np.concatenate([vertices, uv], 1)) + text_rows([3, *face] for face in faces)
    else:
        elements += ["element face 6", "property list uchar int vertex_indices", "property list uchar float texcoord"]
        elements += ["property int texnumber"]
        rows = text_rows(vertices)
        rows += text_rows([4, *range(4 * i, 4 * i + 4), 8, *SIDE_UV.reshape(-1), 0] for i in range(6))
    (tmp_path / "box.ply").write_bytes(ply(elements, rows))
    mesh = load_mesh_file(str(tmp_path / "box.ply"))
    points = np.array([[1, -0.5, 0.5], [1, 0.5, 0.5], [1, -0.5, -0.5], [1, 0.5, -0.5]]) * HALF
    expected = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    assert torch.allclose(colors_at(mesh, points), expected)
    (tmp_path / "my picture.png").unlink()
    with pytest.raises(UserError, match="box.ply names the texture my picture.png, which is not there"):
        load_mesh_file(str(tmp_path / "box.ply"))
    assert load_mesh_file(str(tmp_path / "box.ply"), colors=False).t_pos_idx.shape == (12, 3)


def test_strips_and_elements_in_another_order(tmp_path):
    """Faces before vertices; then a strip of two runs, each of a square."""
    vertices, sides = corners_and_faces()
    elements = ["element face 6", "property list uchar int vertex_indices", "element vertex 8", *XYZ]
    rows = struct.pack("<", *()) + b"".join(struct.pack("<B4i", 4, *side) for side in sides)
    rows += vertices.astype("<f4").tobytes()
    (tmp_path / "box.ply").write_bytes(ply(elements, rows, "binary_little_endian"))
    assert is_watertight(load_mesh_file(str(tmp_path / "box.ply")))
    strip = [*sides[1][[0, 1, 3, 2]], -1, *sides[5][[0, 1, 3, 2]]]
    elements = ["element vertex 8", *XYZ, "element tristrips 1", "property list int int vertex_indices"]
    rows = vertices.astype("<f4").tobytes() + struct.pack(f"<i{len(strip)}i", len(strip), *strip)
    (tmp_path / "strip.ply").write_bytes(ply(elements, rows, "binary_little_endian"))
    mesh = load_mesh_file(str(tmp_path / "strip.ply"))
    corners = mesh.v_pos[mesh.t_pos_idx]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert len(corners) == 4 and (normals[:, [0, 2]].sum(1) > 0).all()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_indices_of_odd_types_and_headers_of_all_systems(tmp_path, end, mark, form):
    vertices, sides = corners_and_faces()
    elements = ["comment a box", "element vertex 8", *XYZ, "element face 6", "property list float float vertex_index"]
    if form == "ascii":
        rows = (end.join(text_rows(vertices) + text_rows([4, *side] for side in sides)) + end).encode()
    else:
        order = "<" if form == "binary_little_endian" else ">"
        rows = vertices.astype(order + "f4").tobytes()
        rows += b"".join(struct.pack(f"{order}5f", 4, *side) for side in sides)
    head = end.join(["ply", f"format {form} 1.0", *elements, "end_header", ""]).encode()
    (tmp_path / "box.ply").write_bytes(mark + head + rows)
    mesh = load_mesh_file(str(tmp_path / "box.ply"))
    assert is_watertight(mesh) and mesh.v_pos.shape == (8, 3) and len(mesh.t_pos_idx) == 12


@pytest.mark.parametrize("index", ["1.5", "nan", "-1"])
def test_an_index_that_is_no_vertex_is_one_line(tmp_path, index):
    vertices, sides = corners_and_faces()
    elements = ["element vertex 8", *XYZ, "element face 1", "property list uchar float vertex_indices"]
    (tmp_path / "box.ply").write_bytes(ply(elements, text_rows([*vertices, [3, 0, 1, index]])))
    with pytest.raises(UserError, match="box.ply is broken: a face names a vertex that is not there"):
        load_mesh_file(str(tmp_path / "box.ply"))


def test_two_properties_of_one_name_are_refused(tmp_path):
    vertices, sides = corners_and_faces()
    elements = ["element vertex 8", *XYZ, XYZ[0], "element face 6", "property list uchar int vertex_indices"]
    rows = text_rows([*vertex, 9] for vertex in vertices) + text_rows([4, *side] for side in sides)
    (tmp_path / "box.ply").write_bytes(ply(elements, rows))
    with pytest.raises(UserError, match="broken PLY header at 'property float x'"):
        load_mesh_file(str(tmp_path / "box.ply"))


def test_some_faces_of_a_ply_have_texture_coordinates(tmp_path, caplog):
    Image.fromarray(quarters()).save(tmp_path / "skin.png")
    vertices, sides = corners_and_faces()
    elements = ["comment TextureFile skin.png", "element vertex 8", *XYZ, "element face 6"]
    elements += ["property list uchar int vertex_indices", "property list uchar float texcoord"]
    own = [[8, *SIDE_UV.reshape(-1)] if i == 1 else [0] for i in range(6)]
    rows = text_rows(vertices) + text_rows([4, *side, *uv] for side, uv in zip(box_index(), own))
    (tmp_path / "box.ply").write_bytes(ply(elements, rows))
    with caplog.at_level("WARNING"):
        mesh = load_mesh_file(str(tmp_path / "box.ply"))
    assert "10 triangles have no texture coordinates" in caplog.text
    green, grey = colors_at(mesh, [[HALF[0], 0.5 * HALF[1], 0.5 * HALF[2]], MIDDLES[0]])
    assert torch.equal(green, torch.tensor([0.0, 1.0, 0.0])) and torch.equal(grey, torch.full((3,), 0.5))


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian"])
def test_a_ply_cut_short_or_broken_is_one_line(tmp_path, form):
    vertices, sides = corners_and_faces()
    elements = ["element vertex 8", *XYZ, "element face 6", "property list uchar int vertex_indices"]
    if form == "ascii":
        rows = ("\n".join(text_rows(vertices) + text_rows([4, *side] for side in sides)) + "\n").encode()
    else:
        rows = vertices.astype("<f4").tobytes() + b"".join(struct.pack("<B4i", 4, *side) for side in sides)
    whole = ply(elements, rows, form)
    for share in (0.1, 0.6, 0.8, 0.97):
        (tmp_path / "box.ply").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match="box.ply.* cut short") as raised:
            load_mesh_file(str(tmp_path / "box.ply"))
        assert "\n" not in str(raised.value)
    for old, new, message in (
        (b"element vertex 8", b"element vertex 7", "broken|cut short"),
        (b"property float z", b"property float w", "its vertices have no z"),
        (b"vertex_indices", b"vertex_indizes", "its faces have no list vertex_indices or vertex_index"),
        (b"list uchar int", b"list uchar ink", "broken PLY header at 'property list uchar ink vertex_indices'"),
    ):
        (tmp_path / "box.ply").write_bytes(whole.replace(old, new))
        with pytest.raises(UserError, match=message):
            load_mesh_file(str(tmp_path / "box.ply"))


# ------------------------------------------------------------------------------------------- OFF


@pytest.mark.parametrize(
    "header, color",
    [
        ("COFF", (51, 102, 204, 255)), ("COFF", (51, 102, 204)), ("COFF", (0.2, 0.4, 0.8, 1.0)),
        ("COFF", (51.0, 102.0, 204.0)), ("OFF", (51, 102, 204)), ("coff", (51, 102, 204)),
    ],
)  # fmt: skip
def test_vertex_colours_of_an_off(tmp_path, header, color):
    vertices, sides = corners_and_faces()
    rows = text_rows([*vertex, *color] for vertex in vertices) + text_rows([4, *side] for side in sides)
    (tmp_path / "box.off").write_text("\n".join([header, "# a box", "8 6 12", *rows]) + "\n")
    mesh = load_mesh_file(str(tmp_path / "box.off"))
    assert is_watertight(mesh) and torch.allclose(mesh.v_rgb, torch.tensor([0.2, 0.4, 0.8]).expand(8, 3), atol=1e-5)


def test_normals_before_the_colours_of_an_off(tmp_path):
    vertices, sides = corners_and_faces()
    rows = text_rows([*vertex, 0, 0, 1, 51, 102, 204, 255] for vertex in vertices) + text_rows([4, *s] for s in sides)
    (tmp_path / "box.off").write_text("\n".join(["CNOFF 8 6 12", *rows]))
    mesh = load_mesh_file(str(tmp_path / "box.off"))
    assert torch.allclose(mesh.v_rgb, torch.tensor([0.2, 0.4, 0.8]).expand(8, 3), atol=1e-5)
    rows = text_rows([*vertex, 0, 0, 1] for vertex in vertices) + text_rows([4, *s] for s in sides)
    (tmp_path / "box.off").write_text("\n".join(["NOFF", "8 6 12", *rows]))
    assert not load_mesh_file(str(tmp_path / "box.off")).extras["has_colors"]


@pytest.mark.parametrize("header, tail", [("NCOFF", ()), ("NCSTOFF", (0.5, 0.5))])
def test_meshlab_writes_the_colours_before_the_normals(tmp_path, header, tail):
    """Its exporter: wrap/io_trimesh/export_off.h of VCGlib."""
    vertices, sides = corners_and_faces()
    rows = text_rows([*vertex, 51, 102, 204, 255, 0.1, -0.2, 1, *tail] for vertex in vertices)
    (tmp_path / "box.off").write_text("\n".join([header, "8 6 0", *rows, *text_rows([4, *side] for side in sides)]))
    mesh = load_mesh_file(str(tmp_path / "box.off"))
    assert is_watertight(mesh) and torch.allclose(mesh.v_rgb, torch.tensor([0.2, 0.4, 0.8]).expand(8, 3), atol=1e-5)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("header", ["off", "OFF"])
def test_headers_of_an_off(tmp_path, mark, header):
    vertices, sides = corners_and_faces()
    rows = text_rows(vertices) + text_rows([4, *side] for side in sides)
    (tmp_path / "box.off").write_bytes(mark + "\r\n".join([header, "8 6 0", *rows]).encode())
    assert is_watertight(load_mesh_file(str(tmp_path / "box.off")))


@pytest.mark.parametrize("scale", [1, 1 / 255])
def test_face_colours_of_an_off(tmp_path, scale):
    vertices, sides = corners_and_faces()
    colors = SIDE_COLORS if scale == 1 else SIDE_COLORS * scale
    rows = text_rows(vertices) + text_rows([4, *side, *color] for side, color in zip(sides, colors))
    (tmp_path / "box.off").write_text("\n".join(["OFF", "8 6 0", *rows]) + "\n")
    assert each_side_has_its_colour(load_mesh_file(str(tmp_path / "box.off")))


@pytest.mark.parametrize(
    "text, message",
    [
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n", "cut short: 2 of 4 vertices and faces"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1\n", "fewer corners than it counts"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n", "names a vertex that is not there"),
        ("OFF\n3 1 0\n0 0\n1 0 0\n0 1 0\n3 0 1 2\n", "too short or not made of numbers"),
        ("OFF\n0 0 0\n", "has no triangles"),
        ("OFF\n-1 2 0\n0 0 0\n", "it counts -1 vertices and 2 faces"),
        ("OFF BINARY\n", "a binary OFF file is not read"),
        ("4OFF\n3 1 0\n", "other than three dimensions"),
        ("this is a text\n", "is no OFF file"),
    ],
)
def test_an_off_that_is_broken_is_one_line(tmp_path, text, message):
    (tmp_path / "box.off").write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        load_mesh_file(str(tmp_path / "box.off"))
    assert "\n" not in str(raised.value) and "box.off" in str(raised.value)


# ------------------------------------------------------------------------------------------- STL


def stl_bytes(triangles, head=b""):
    rows = b"".join(struct.pack("<12fH", 0, 0, 0, *triangle.reshape(-1), 0) for triangle in triangles)
    return head.ljust(80, b" ") + struct.pack("<I", len(triangles)) + rows


def test_stl_in_text_and_in_bytes(tmp_path):
    vertices, faces, _ = box_triangles()
    triangles = vertices[faces]
    lines = ["solid box"]
    for triangle in triangles:
        lines += ["facet normal 0 0 0", "outer loop", *(f"  vertex {x} {y} {z:e}" for x, y, z in triangle)]
        lines += ["endloop", "endfacet"]
    text = "\n".join([*lines, "endsolid box"]).encode()
    marked = b"\xef\xbb\xbf" + text
    contents = (text, marked, b" \r\n" + text, stl_bytes(triangles), stl_bytes(triangles, b"solid but in bytes"))
    for content in contents:
        (tmp_path / "box.STL").write_bytes(content)
        mesh = load_mesh_file(str(tmp_path / "box.STL"))
        assert is_watertight(mesh) and torch.allclose(mesh.v_pos.amax(0), torch.from_numpy(HALF).float())
    (tmp_path / "box.STL").write_bytes(contents[0].replace(b"  vertex", b"  vertax", 1))
    with pytest.raises(UserError, match="its 35 vertices make no whole number of triangles"):
        load_mesh_file(str(tmp_path / "box.STL"))
