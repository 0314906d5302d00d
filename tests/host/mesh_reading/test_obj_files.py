"""OBJ and MTL as many programs write them: indices, material lines, and the colours of vertices."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.host.mesh_reading.shapes import HALF, SIDE_UV, box_sides, box_triangles, colors_at, quarters
from threestudio.models.exporters.simplification import is_watertight
from threestudio.utils.errors import UserError
from threestudio.utils.mesh_reading import load_mesh_file
from threestudio.utils.mesh_reading.mtl import parse_map_line

RED, GREEN, BLUE, WHITE = (torch.tensor(c, dtype=torch.float32) for c in ([1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]))
SIDE = {(u, v): np.array([1, 2 * u - 1, 2 * v - 1]) * HALF for u in (0.25, 0.75) for v in (0.25, 0.75)}
ALL_FOUR = [SIDE[0.25, 0.75], SIDE[0.75, 0.75], SIDE[0.25, 0.25], SIDE[0.75, 0.25]]  # v up: the picture's own order


def obj_text(head="", colors=None, coordinates=True, use=""):
    vertices, faces, uv = box_triangles()
    extra = [""] * 24 if colors is None else [" " + " ".join(map(str, color)) for color in colors]
    lines = [head, *(f"v {x} {y} {z}{more}" for (x, y, z), more in zip(vertices, extra))]
    lines += [f"vt {u} {v}" for u, v in uv] if coordinates else []
    corner = "{0}/{0}" if coordinates else "{0}"
    lines += [use, *("f " + " ".join(corner.format(i + 1) for i in face) for face in faces)]
    return "\n".join(lines) + "\n"


@pytest.fixture()
def folder(tmp_path):
    (tmp_path / "textures").mkdir()
    for name in ("plain.png", "my tex.png", "textures/skin.png"):
        Image.fromarray(quarters()).save(tmp_path / name)
    return tmp_path


def read(folder, text, **libraries):
    (folder / "box.obj").write_text(text)
    for name, content in libraries.items():
        (folder / f"{name}.mtl").write_text(content)
    return load_mesh_file(str(folder / "box.obj"))


def shows_the_picture(mesh):
    return torch.allclose(colors_at(mesh, ALL_FOUR), torch.stack([RED, GREEN, BLUE, WHITE]))


def all_colors(mesh):
    n = mesh.t_pos_idx.shape[0]
    return mesh.extras["colors"].at(torch.arange(n), torch.full((n, 3), 1 / 3))


# ------------------------------------------------------------------------------------------- indices


def test_negative_indices_count_back_from_the_line_of_the_face(folder):
    lines = ["mtllib box.mtl", "usemtl M"]
    for side in box_sides():
        lines += [f"v {x} {y} {z}" for x, y, z in side] + [f"vt {u} {v}" for u, v in SIDE_UV]
        lines += ["f -4/-4 -3/-3 -2/-2 -1/-1"]
    mesh = read(folder, "\n".join(lines), box="newmtl M\nmap_Kd plain.png\n")
    assert mesh.v_pos.shape == (8, 3) and mesh.t_pos_idx.shape == (12, 3) and is_watertight(mesh)
    assert shows_the_picture(mesh)


def test_corners_of_all_kinds_lines_that_go_on_and_comments(folder):
    vertices, faces, _ = box_triangles()
    kinds = ("{0}", "{0}//{0}", "{0}/{0}", "{0}/{0}/{0}")
    lines = ["# a box"] + [f"v {x} {y} {z} 1.0 # with a weight" for x, y, z in vertices] + ["vt 0 0", "vn 0 0 1"] * 24
    for i, face in enumerate(faces):
        corners = [kinds[i % 4].format(index + 1) for index in face]
        lines.append(f"f {corners[0]} \\\n  {corners[1]} {corners[2]}  # made by hand")
    mesh = read(folder, "\n".join(lines + ["l 1 2", "p 1", "s off", "g side"]))
    assert is_watertight(mesh) and mesh.v_pos.shape == (8, 3) and not mesh.extras["has_colors"]


def test_a_polygon_that_is_not_convex_keeps_its_shape(folder):
    """An L of area 3, beginning at a corner from which a fan would leave it."""
    outline = [(2, 0), (2, 1), (1, 1), (1, 2), (0, 2), (0, 0)]
    mesh = read(folder, "\n".join([f"v {x} {y} 0" for x, y in outline] + ["f 1 2 3 4 5 6"]))
    corners = mesh.v_pos[mesh.t_pos_idx]
    cross = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert cross[:, 2].sum() / 2 == pytest.approx(3) and (cross[:, 2] >= 0).all() and len(corners) == 4


@pytest.mark.parametrize("face", ["f 1 2 25", "f 1 2 -25", "f 0 1 2", "f 1/99 2/1 3/1", "f 1 2", "f 1 2 x", "f 1 2 3/"])
def test_faces_that_cannot_be_are_one_line(folder, face):
    with pytest.raises(UserError, match="box.obj is (cut short or )?broken") as raised:
        read(folder, obj_text() + face + "\n")
    assert "\n" not in str(raised.value)


def test_keywords_of_any_case_and_lines_that_go_on_behind_blanks(folder):
    text = obj_text("MTLLIB box.mtl", use="USEMTL M").replace("v ", "V ").replace("f ", "F ")
    first = next(line for line in text.splitlines() if line.startswith("F "))
    text = text.replace(first, " ".join(first.split()[:2]) + " \\ \t\n " + " ".join(first.split()[2:]))
    assert shows_the_picture(read(folder, text, box="NEWMTL M\nMAP_KD -s 1 1 1 \\\n  plain.png\n"))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lines_of_all_systems_in_files_that_begin_with_a_mark(folder, end, encoding):
    (folder / "box.mtl").write_bytes("newmtl M\nmap_Kd plain.png\n".replace("\n", end).encode(encoding))
    text = obj_text("mtllib box.mtl", use="usemtl M")
    (folder / "box.obj").write_bytes(text.replace("\n", end).encode(encoding))
    assert shows_the_picture(load_mesh_file(str(folder / "box.obj")))


# ------------------------------------------------------------------------------------------- material lines


@pytest.mark.parametrize(
    "line",
    [
        "plain.png", "my tex.png", '"my tex.png"', "'my tex.png'", "-s 1 1 1 plain.png", "-s 1 1 1 -o 0 0 0 my tex.png",
        "-clamp on plain.png", "-blendu on -blendv off -cc off -texres 512 -bm 1.0 -boost 2 plain.png",
        "-mm 0 1 plain.png", "-s 1 plain.png", "textures/skin.png", "textures\\skin.png", ".\\textures\\skin.png",
        "Textures/SKIN.PNG", "C:\\Users\\me\\props\\plain.png", "/home/me/props/my tex.png", "my tex.png -o 0 0 0",
        "plain.png # colours", '"my tex.png"  # colours', "my%20tex.png", "textures%2Fskin.png",
    ],
)  # fmt: skip
@pytest.mark.parametrize("keyword", ["map_Kd", "\tmap_kd"])
def test_every_way_to_name_a_picture(folder, line, keyword):
    mesh = read(folder, obj_text("mtllib box.mtl", use="usemtl M"), box=f"newmtl M\nKd 0.8 0.8 0.8\n{keyword} {line}\n")
    assert shows_the_picture(mesh)


@pytest.mark.parametrize(
    "options, expected",
    [
        ("-o 0.5 0 0", (GREEN, RED, WHITE, BLUE)),
        ("-o 0 0.5", (BLUE, WHITE, RED, GREEN)),
        ("-s 0.5 0.5 1", (BLUE, BLUE, BLUE, BLUE)),  # the picture's lower left, where v is 0
        ("-s 0.5 0.5 1 -o 0.5 0.5 0", (GREEN, GREEN, GREEN, GREEN)),
        ("-clamp on -o 2 0", (GREEN, GREEN, WHITE, WHITE)),
        ("-mm 0.2 0.5", tuple(0.2 + 0.5 * c for c in (RED, GREEN, BLUE, WHITE))),
    ],
)
def test_options_of_a_map_are_applied(folder, options, expected):
    text = obj_text("mtllib box.mtl", use="usemtl M")
    mesh = read(folder, text, box=f"newmtl M\nmap_Kd {options} plain.png\n")
    assert torch.allclose(colors_at(mesh, ALL_FOUR), torch.stack(expected), atol=3e-3)


@pytest.mark.parametrize("options", ["-imfchan r", "-t 0.5 0.5 0.5", "-type sphere"])
def test_options_that_are_not_read_are_refused(folder, options):
    name = options.split()[0]
    with pytest.raises(UserError, match=f"box.mtl: map_Kd: the option {name} is not read"):
        read(folder, obj_text("mtllib box.mtl", use="usemtl M"), box=f"newmtl M\nmap_Kd {options} plain.png\n")


def test_a_map_line_is_taken_apart():
    name, options = parse_map_line("-s 2 3 -o 0.5 -clamp on a b 1.png")
    assert name == "a b 1.png" and options.scale == (2.0, 3.0) and options.offset == (0.5, 0.0) and options.clamp
    assert parse_map_line("-o 1 2 3.png")[0] == "3.png"  # the name is never taken for a number
    assert parse_map_line("-o 1 2 3 4")[0] == "4"


@pytest.mark.parametrize(
    "line",
    ["first.mtl second.mtl", '"first.mtl" second.mtl', "my lib.mtl", '"my lib.mtl"', "MY LIB.MTL", "my lib.mtl # ours"],
)
def test_libraries_of_all_kinds(folder, line):
    content = "newmtl M\nmap_Kd plain.png\n"
    libraries = {"my lib": content, "second": content, "first": "newmtl Other\nKd 1 0 0\n"}
    assert shows_the_picture(read(folder, obj_text(f"mtllib {line}", use="usemtl M"), **libraries))


def test_what_is_not_there_is_named(folder):
    text = obj_text("mtllib box.mtl other.mtl", use="usemtl M")
    with pytest.raises(UserError, match="box.obj names the material file other.mtl, which is not there"):
        read(folder, text, box="newmtl M\nmap_Kd plain.png\n")
    with pytest.raises(UserError, match="box.obj names the material file my lib.mtl, which is not there"):
        read(folder, obj_text("mtllib my lib.mtl"))
    for line in ("gone.png", "-s 1 1 1 gone.png", '"gone.png"', "C:\\gone.png"):
        with pytest.raises(UserError, match="box.mtl names the texture .*gone.png.*, which is not there"):
            read(folder, obj_text("mtllib box.mtl", use="usemtl M"), box=f"newmtl M\nmap_Kd {line}\n")
    (folder / "torn.png").write_bytes((folder / "plain.png").read_bytes()[:60])
    with pytest.raises(UserError, match="torn.png cannot be read as a picture"):
        read(folder, obj_text("mtllib box.mtl", use="usemtl M"), box="newmtl M\nmap_Kd torn.png\n")
    unused = "newmtl M\nmap_Kd plain.png\nnewmtl N\nmap_Kd gone.png\n"
    assert shows_the_picture(read(folder, obj_text("mtllib box.mtl", use="usemtl M"), box=unused))


def test_a_library_without_usemtl(folder, caplog):
    one, two = "newmtl M\nmap_Kd plain.png\n", "newmtl M\nmap_Kd plain.png\nnewmtl N\nKd 1 0 0\n"
    assert shows_the_picture(read(folder, obj_text("mtllib box.mtl"), box=one))
    with caplog.at_level("WARNING"):
        assert not read(folder, obj_text("mtllib box.mtl"), box=two).extras["has_colors"]
        assert "faces without usemtl have no material" in caplog.text
        assert not read(folder, obj_text("mtllib box.mtl", use="usemtl Lost"), box=one).extras["has_colors"]
        assert "usemtl names Lost, which is in none of its material libraries" in caplog.text


@pytest.mark.parametrize("defined", ["M", '"M"', "M # red", "m"])
@pytest.mark.parametrize("used", ["M", '"M"', "M\t# red", "m"])
def test_a_material_is_found_whatever_stands_around_its_name(folder, defined, used):
    assert shows_the_picture(
        read(folder, obj_text("mtllib box.mtl", use=f"usemtl {used}"), box=f"newmtl {defined}\nmap_Kd plain.png\n")
    )


def test_names_that_differ_in_case_alone_are_two_materials(folder):
    library = "newmtl m\nKd 1 0 0\nnewmtl M\nmap_Kd plain.png\n"
    assert shows_the_picture(read(folder, obj_text("mtllib box.mtl", use="usemtl M"), box=library))


def test_a_texture_that_cannot_be_shown_is_said(folder, caplog):
    text = obj_text("mtllib box.mtl", coordinates=False, use="usemtl M")
    with caplog.at_level("WARNING"):
        mesh = read(folder, text, box="newmtl M\nKd 0.2 0.4 0.8\nmap_Kd plain.png\n")
    assert "box.obj: 12 triangles under a texture have no texture coordinates" in caplog.text
    assert torch.allclose(all_colors(mesh), torch.tensor([0.2, 0.4, 0.8]).expand(12, 3))


def test_a_plain_colour_with_and_without_texture_coordinates(folder):
    for coordinates in (True, False):
        text = obj_text("mtllib box.mtl", coordinates=coordinates, use="usemtl My material")
        mesh = read(folder, text, box="newmtl My material\n  Kd 0.2 0.4 0.8 # blue\n")
        assert torch.allclose(all_colors(mesh), torch.tensor([0.2, 0.4, 0.8]).expand(12, 3))
    mesh = read(folder, obj_text("mtllib box.mtl", use="usemtl M"), box="newmtl M\nKd 0.3\n")
    assert torch.allclose(all_colors(mesh), torch.full((12, 3), 0.3))
    with pytest.raises(UserError, match="box.mtl: Kd: expected one or three numbers, got 'spectral red.rfl'"):
        read(folder, obj_text("mtllib box.mtl", use="usemtl M"), box="newmtl M\nKd spectral red.rfl\n")


# ------------------------------------------------------------------------------------------- colours of vertices

COLOR = (0.2, 0.4, 0.8)


@pytest.mark.parametrize("colors", [COLOR, (51, 102, 204), (51.0, 102.0, 204.0), (*COLOR, 1.0)])
@pytest.mark.parametrize("material", [None, "Kd 1 1 1", "Kd 0.8 0.8 0.8", "Ns 10"])
@pytest.mark.parametrize("coordinates", [False, True])
def test_vertex_colours_with_and_without_a_material(folder, colors, material, coordinates):
    head, use = ("mtllib box.mtl", "usemtl M") if material else ("", "")
    mesh = read(folder, obj_text(head, [colors] * 24, coordinates, use), box=f"newmtl M\n{material}\n")
    assert mesh.extras["has_colors"] and torch.allclose(all_colors(mesh), torch.tensor(COLOR).expand(12, 3), atol=1e-5)


@pytest.mark.parametrize(
    "colors, expected",
    [((1.02, 0.4, 0.2), (1.0, 0.4, 0.2)), ((1, 1, 0), (1 / 255, 1 / 255, 0)), ((255, 102, 51), (1.0, 0.4, 0.2))],
)
def test_colours_that_exceed_one_by_a_little_are_not_of_255(folder, colors, expected):
    """Whole numbers count to 255 as soon as one of them exceeds 1."""
    mesh = read(folder, obj_text(colors=[colors] * 23 + [(255, 255, 255) if colors == (1, 1, 0) else colors]))
    assert torch.allclose(all_colors(mesh)[0], torch.tensor(expected), atol=1e-5)


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_colours_and_texture_coordinates_that_are_not_finite_are_grey_and_said(folder, number, caplog):
    """No NaN may come into a network's targets."""
    textured = obj_text("mtllib box.mtl", use="usemtl M").replace("vt 1.0 1.0", f"vt 1.0 {number}", 1)
    colored = obj_text(colors=[(number, 0.4, 0.8)] + [COLOR] * 23)
    for text in (textured, colored):
        with caplog.at_level("WARNING"):
            mesh = read(folder, text, box="newmtl M\nmap_Kd plain.png\n")
        assert torch.isfinite(all_colors(mesh)).all() and torch.isfinite(mesh.v_rgb).all()
        grey = (all_colors(mesh) == 0.5).all(1)
        assert 1 <= grey.sum() <= 2 and f"{grey.sum()} triangles have colours that are not finite" in caplog.text


def test_a_texture_goes_before_vertex_colours_and_white_ones_before_nothing(folder):
    text = obj_text("mtllib box.mtl", [COLOR] * 24, use="usemtl M")
    assert shows_the_picture(read(folder, text, box="newmtl M\nmap_Kd plain.png\n"))
    white = obj_text("mtllib box.mtl", [(1, 1, 1)] * 24, use="usemtl M")
    mesh = read(folder, white, box="newmtl M\nKd 0.2 0.4 0.8\n")
    assert torch.allclose(all_colors(mesh), torch.tensor(COLOR).expand(12, 3))


def test_vertex_colours_on_some_objects_only(folder):
    """Two boxes, one has colours; a third has a material. What says nothing is grey."""
    plain = obj_text(coordinates=False)
    colored = obj_text(colors=[(51, 102, 204)] * 24, coordinates=False)
    parts = ["mtllib box.mtl"]
    for i, (text, use) in enumerate(((colored, ""), (plain, ""), (plain, "usemtl R"))):
        parts.append(f"o part{i}\n{use}")
        for line in text.splitlines():
            words = line.split()
            if words[:1] == ["v"]:
                parts.append(f"v {float(words[1]) + i} " + " ".join(words[2:]))
            elif words[:1] == ["f"]:
                parts.append("f " + " ".join(str(int(word) + 24 * i) for word in words[1:]))
    mesh = read(folder, "\n".join(parts), box="newmtl R\nKd 1 0 0\nnewmtl S\nKd 0 0 1\n")
    middle = mesh.v_pos[mesh.t_pos_idx].mean(1)[:, 0].round()
    colors = all_colors(mesh)
    for i, expected in enumerate((torch.tensor(COLOR), torch.full((3,), 0.5), RED)):
        assert (middle == i).sum() == 12 and torch.allclose(colors[middle == i], expected.expand(12, 3), atol=1e-5)


def test_letters_of_other_alphabets(folder):
    Image.fromarray(quarters()).save(folder / "Stühle.png")
    text = obj_text("mtllib box.mtl", use="usemtl Möbel")
    for encoding in ("utf-8", "utf-8-sig", "latin-1"):
        (folder / "box.mtl").write_bytes("newmtl Möbel\nmap_Kd Stühle.png\n".encode(encoding))
        (folder / "box.obj").write_bytes(text.replace("\n", "\r\n").encode(encoding))
        assert shows_the_picture(load_mesh_file(str(folder / "box.obj")))
